"""Fake kernels and gradient formulas of the ``lowrank_*`` ops, registered by importing them."""

from pyext.ops._lowrank import gate, orthonormalize, rows

__all__ = ["gate", "orthonormalize", "rows"]
