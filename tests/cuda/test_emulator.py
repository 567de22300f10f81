"""The CUDA sources, run by the emulator, through the numerical tests of the ops."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.emulated import (
    EMULATOR,
    ROOT,
    VARIANTS,
    build,
    compile_emulated,
    sanitizer_environment,
)


def run_numerics(variant: str, **environment: str) -> subprocess.CompletedProcess[str]:
    build(variant)
    command = [sys.executable, "-m", "pytest", f"--backend={variant}", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "tests/ops"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def check_passed(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 10, done.stdout[-2000:]
    assert "skipped" not in done.stdout


def test_numerics():
    check_passed(run_numerics("emulator"))


def test_numerics_with_the_threads_in_reverse():
    check_passed(run_numerics("emulator", PYEXT_EMULATOR_ORDER="reverse"))


def test_numerics_under_the_sanitizers():
    check_passed(run_numerics("sanitized", **sanitizer_environment()))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (0, "block 0: thread 5 has returned, thread 0 waits at __syncthreads"),
        (1, "block 0: thread 5 waits at __syncwarp, thread 0 waits at __syncthreads"),
    ],
)
def test_a_thread_that_never_arrives_is_named(tmp_path, kernel, message):
    assert message in run_wrong_kernel(tmp_path, kernel, "emulator")


def test_a_write_beyond_an_array_is_found(tmp_path):
    assert "heap-buffer-overflow" in run_wrong_kernel(tmp_path, 2, "sanitized")


def run_wrong_kernel(folder: Path, kernel: int, variant: str) -> str:
    """What the emulator and the sanitizers print about one of the kernels."""
    program = folder / "wrong_kernels"
    sources = [ROOT / "tests" / "cuda" / "wrong_kernels.cpp", EMULATOR / "emulator.cpp"]
    compile_emulated(sources, program, VARIANTS[variant])
    done = subprocess.run([program, str(kernel)], capture_output=True, text=True)
    return done.stdout + done.stderr
