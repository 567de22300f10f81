"""Fake kernels and gradient formulas of the ``lowrank_*`` ops, registered by importing them."""

from pyext.ops._lowrank import gate, lora, mix, orthonormalize, rows

__all__ = ["gate", "lora", "mix", "orthonormalize", "rows"]
