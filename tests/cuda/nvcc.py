"""Compiles the CUDA sources for real, without a GPU: architectures, warnings, register spills."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("sm_80", "sm_90")
SOURCES = tuple(sorted(ROOT.glob("csrc/*/cuda.cu")))

_KERNEL = re.compile(r"Compiling entry function '(\w+)' for 'sm_\d+'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one kernel: registers a thread, bytes of shared memory and of spills."""

    name: str
    registers: int
    shared: int
    spilled: int

    @property
    def ours(self) -> bool:
        return "5pyext" in self.name  # CUB's kernels are in the same file


def find_nvcc() -> str | None:
    """The compiler, or None where there is none."""
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def parse_resources(log: str) -> list[Kernel]:
    """Kernels in the output of ``ptxas -v``, in its order."""
    kernels = []
    for part in re.split(r"(?=Compiling entry function)", log):
        name, spills = _KERNEL.search(part), _SPILLS.search(part)
        registers, shared = _REGISTERS.search(part), _SHARED.search(part)
        if name and spills and registers:
            kernels.append(
                Kernel(
                    name=name[1],
                    registers=int(registers[1]),
                    shared=int(shared[1]) if shared else 0,
                    spilled=int(spills[2]) + int(spills[3]),
                )
            )
    return kernels


def compile_for(nvcc: str, source: Path, architecture: str) -> list[Kernel]:
    """Compile one file for one architecture, warnings as errors, and return its kernels.

    Raises:
        RuntimeError: it does not compile; the message is the compiler's.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(nvcc, "-std=c++17", "-O3", f"-arch={architecture}", "--expt-relaxed-constexpr"),
            *("-Werror=all-warnings", "-Xcompiler=-Wall", "-Xptxas=-v"),
            *("-I", str(ROOT / "csrc"), "-c", str(source), "-o", str(Path(folder) / "out.o")),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{source.parent.name}, {architecture}:\n{done.stderr}")
    return parse_resources(done.stderr + done.stdout)
