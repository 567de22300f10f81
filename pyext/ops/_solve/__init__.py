"""Fake kernels of the ``solve_*`` ops, and those made of others, registered by importing them."""

from pyext.ops._solve import dual, fakes, truncation

__all__ = ["dual", "fakes", "truncation"]
