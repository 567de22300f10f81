"""Fake kernels and gradient formulas of the ``side_*`` ops, registered by importing them."""

from pyext.ops._side import pool, project

__all__ = ["pool", "project"]
