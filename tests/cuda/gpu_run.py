"""Everything that needs a GPU, in one go: tests, sanitizers, benchmarks.

Leaves ``benchmarks/results/<date>-<device>/`` with the benchmarks' JSON, tables and plots, which
name the device, the driver and the commit. `make gpu` builds the extension and runs this.
"""

from __future__ import annotations

import datetime
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/cuda/test_gpu.py"]
# A sanitizer makes kernels many times slower; these touch every kernel once.
SANITIZED = [*PYTEST, "-k", "test_agrees_with_the_cpu and 64 and (3 or 7)"]


def main() -> int:
    if not torch.cuda.is_available():
        print(f"no CUDA device that torch {torch.__version__} can use", file=sys.stderr)
        return 2
    device = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower())
    output = ROOT / "benchmarks" / "results" / f"{datetime.date.today()}-{device}"
    steps = [PYTEST]
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer:
        for tool in ("memcheck", "racecheck"):
            steps.append([sanitizer, "--tool", tool, "--error-exitcode", "1", *SANITIZED])
    else:
        print("compute-sanitizer is not on PATH: memory and race checks are left out")
    steps.append([sys.executable, "-m", "pyext.cli", "bench", "-o", str(output)])
    failed = 0
    for step in steps:  # all of them, so that one failure does not hide the next
        print("$", *step, flush=True)
        failed += subprocess.run(step, cwd=ROOT).returncode != 0
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
