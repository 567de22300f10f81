"""Facts and switches of the compiled part: instruction set, threads, build."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pyext._load import load

_C = load()


def isa() -> str:
    """The instruction set the CPU kernels use.

    ``baseline``, ``avx2``, ``avx512``, or ``avx512_bf16``: that with products of bfloat16.

    Picked when the module loads: the best this machine has, or what the environment variable
    ``PYEXT_ISA`` names.
    """
    return _C.isa()


def isas() -> list[str]:
    """The instruction sets usable on this machine, best last."""
    return _C.isas()


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Run the CPU kernels at another instruction set inside a ``with`` block.

    The switch is for the whole process, not for one thread.

    Raises:
        ValueError: the set is unknown or this machine does not support it.
    """
    before = isa()
    _C.set_isa(name)
    try:
        yield
    finally:
        _C.set_isa(before)


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Run the kernels, and torch, on a number of intra-op threads inside a ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build_info() -> dict[str, str]:
    """What the compiled part was built with: ``torch``, ``compiler``, ``cuda`` (empty: none)."""
    return _C.build_info()


def fma_peak(seconds: float = 0.2) -> float:
    """Floating-point operations per second of all intra-op threads in fused multiply-adds."""
    return _C.fma_peak(seconds)


def running_threads() -> int:
    """How many operating-system threads really run a parallel loop of the kernels now."""
    return _C.running_threads()
