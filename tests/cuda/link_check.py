"""Builds pyext with its CUDA kernels against a CUDA build of torch, and loads it without a GPU.

A laptop with CUDA torch and no GPU, or none that works, is a common place to be: there `import
pyext.ops` and the CPU ops must work. Needs nvcc, a few gigabytes from the package index, and no
GPU. `make cuda-link-check` runs it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / "build" / "cuda-link-check"
PYTHON = VENV / "bin" / "python"
# `===` asks for the build without a local version: on the package index that is the CUDA one.
TORCH = "torch===2.13.0"

SMOKE = """
import torch, pyext.runtime
from pyext.ops.splat import rasterization
info = pyext.runtime.build_info()
assert torch.version.cuda, "this torch is not a CUDA build"
assert info["cuda"], f"built without CUDA kernels: {info}"
opacities = torch.tensor([0.5], requires_grad=True)
_, alphas, _ = rasterization(
    torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.full((1, 3), 0.1),
    opacities, torch.ones(1, 3), torch.eye(4)[None],
    torch.tensor([[[20.0, 0.0, 8.5], [0.0, 20.0, 8.5], [0.0, 0.0, 1.0]]]), 17, 17,
)
alphas[0, 8, 8, 0].backward()
torch.testing.assert_close(alphas[0, 8, 8, 0].detach(), torch.tensor(0.5))
torch.testing.assert_close(opacities.grad, torch.ones(1))
print(f"torch {torch.__version__}, CUDA kernels by nvcc {info['cuda']}, device present: "
      f"{torch.cuda.is_available()}; import pyext.ops and the CPU ops work")
"""


def main() -> None:
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True)
    subprocess.run([*pip, TORCH, "numpy"], check=True)
    subprocess.run([*pip, "--group", "build"], check=True, cwd=ROOT)
    # A build made elsewhere is not reused: this must compile and link now.
    environment = dict(os.environ, PYEXT_CUDA="on", PATH=f"{VENV / 'bin'}:{os.environ['PATH']}")
    install = [*pip, "--no-build-isolation", "--no-deps", "--force-reinstall", str(ROOT)]
    subprocess.run(install, check=True, env=environment)
    # Away from the checkout, so that the installed package is the one imported.
    subprocess.run([str(PYTHON), "-c", SMOKE], check=True, cwd=VENV)


if __name__ == "__main__":
    main()
