"""Hands the build of `pyext._C` to CMake. Metadata lives in pyproject.toml.

PYEXT_CUDA=auto|on|off says whether the CUDA kernels are built; MAX_JOBS how many compilers run.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # Kept, so that a second build compiles only what changed; of its own for every torch.
        build = HERE / "build" / f"cmake-{sys.implementation.cache_tag}-torch{torch.__version__}"
        build.mkdir(parents=True, exist_ok=True)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        configure = [
            *("cmake", "-S", str(HERE), "-B", str(build), "-G", "Ninja"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPYEXT_CUDA={os.environ.get('PYEXT_CUDA', 'auto')}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)


# A torch extension works with the minor release it was compiled against, and with no other.
torch_minor = ".".join(torch.__version__.split(".")[:2])

setup(
    ext_modules=[Extension("pyext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    install_requires=[f"torch=={torch_minor}.*", "numpy"],
)
