"""Builds the emulator: the CUDA sources, compiled with the host's C++ compiler."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = ROOT / "tests" / "cuda" / "emulator"
BUILD = ROOT / "build" / "emulator"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = [
    *("-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    # Fortified longjmp takes a change of stack for an attack.
    *("-U_FORTIFY_SOURCE", "-ffp-contract=off", "-DPYEXT_EMULATOR"),
    *("-I", str(EMULATOR), "-I", str(ROOT / "csrc")),
]
VARIANTS = {
    "emulator": ["-O2"],
    "sanitized": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}


def compile_emulated(sources: list[Path], output: Path, options: list[str]) -> None:
    """Compile CUDA sources for the emulator.

    Raises:
        subprocess.CalledProcessError: they do not compile.
    """
    command = [COMPILER, *FLAGS, *options, "-x", "c++", *map(str, sources), "-o", str(output)]
    subprocess.run(command, check=True)


def build(variant: str) -> Path:
    """The library of all families' CUDA sources in one variant, compiled if anything changed.

    Raises:
        subprocess.CalledProcessError: it does not compile.
    """
    library = BUILD / f"lib{variant}.so"
    sources = [*sorted(ROOT.glob("csrc/*/cuda.cu")), EMULATOR / "emulator.cpp"]
    inputs = [Path(__file__), *EMULATOR.rglob("*.*"), *ROOT.glob("csrc/**/*.*")]
    if library.exists() and library.stat().st_mtime > max(p.stat().st_mtime for p in inputs):
        return library
    BUILD.mkdir(parents=True, exist_ok=True)
    fresh = BUILD / f"{os.getpid()}.so"
    compile_emulated(sources, fresh, ["-shared", "-fPIC", *VARIANTS[variant]])
    fresh.replace(library)
    return library


def sanitizer_environment() -> dict[str, str]:
    """What a Python process needs to load the sanitized library."""
    runtimes = [
        subprocess.run(
            [COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # The interpreter and torch keep memory for the life of the process: leaks are theirs.
    return {"LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}
