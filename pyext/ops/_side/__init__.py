"""Fake kernels and gradient formulas of the ``side_*`` ops, registered by importing them."""

from pyext.ops._side import antired, attend, confidence, pool, project

__all__ = ["antired", "attend", "confidence", "pool", "project"]
