"""What this machine and this build are: for `pyext doctor`, and beside every measured figure."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pyext import runtime


def describe() -> dict[str, Any]:
    """Versions, processor, threads, CUDA and commit; no paths and no host names."""
    return {
        "versions": {
            "pyext-kernels": version("pyext-kernels"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": version("numpy"),
        },
        "commit": commit(),
        "build": runtime.build_info(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "instruction set": runtime.isa(),
        "instruction sets usable": runtime.isas(),
        "threads": torch.get_num_threads(),
        "threads running": runtime.running_threads(),
        "cuda": cuda(),
    }


def processor() -> str:
    """The processor's model name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cuda() -> str:
    """The CUDA device in use, or why there is none."""
    if torch.version.cuda is None:
        return "none: this torch is a CPU build"
    if not runtime.build_info()["cuda"]:
        return "none: pyext was built without its CUDA kernels"
    if not torch.cuda.is_available():
        return f"none: torch has CUDA {torch.version.cuda}, but finds no device"
    name = torch.cuda.get_device_name()
    return f"{name}, driver {_driver()}, torch with CUDA {torch.version.cuda}"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return (_output(command, Path.cwd()) or "unknown").splitlines()[0]


def commit() -> str | None:
    """The commit of the checkout this package runs from, marked where files differ; else None."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    name = _output(["git", "rev-parse", "HEAD"], root)
    if name is None:
        return None
    changed = _output(["git", "status", "--porcelain", "--untracked-files=no"], root)
    return name + (" with changes" if changed else "")


def _output(command: list[str], folder: Path) -> str | None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
