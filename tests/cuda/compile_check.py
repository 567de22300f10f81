"""Prints what every CUDA kernel costs on every architecture; fails on warnings and spills.

`make cuda-check` runs it; it needs nvcc, and no GPU.
"""

from __future__ import annotations

import subprocess
import sys

from nvcc import ARCHITECTURES, SOURCES, Kernel, compile_for, find_nvcc


def readable(kernels: list[Kernel]) -> list[str]:
    names = "\n".join(kernel.name for kernel in kernels)
    done = subprocess.run(["c++filt"], input=names, capture_output=True, text=True, check=True)
    return [name.split("(")[0].removeprefix("void ") for name in done.stdout.splitlines()]


def main() -> int:
    nvcc = find_nvcc()
    if nvcc is None:
        print("no nvcc found: put the CUDA toolkit's bin folder on PATH", file=sys.stderr)
        return 2
    spilled = 0
    for source in SOURCES:
        for architecture in ARCHITECTURES:
            kernels = [k for k in compile_for(nvcc, source, architecture) if k.ours]
            print(f"{source.parent.name}, {architecture}: registers, shared bytes, spilled bytes")
            for kernel, name in zip(kernels, readable(kernels), strict=True):
                print(f"  {kernel.registers:4} {kernel.shared:7} {kernel.spilled:5}  {name}")
            spilled += sum(kernel.spilled for kernel in kernels)
    if spilled:
        print(f"{spilled} bytes of registers are spilled", file=sys.stderr)
    return int(spilled > 0)


if __name__ == "__main__":
    sys.exit(main())
