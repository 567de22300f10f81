"""Fake kernels and gradient formulas of the ``lowrank_*`` ops, registered by importing them."""

from pyext.ops._lowrank import lora, mix

__all__ = ["lora", "mix"]
