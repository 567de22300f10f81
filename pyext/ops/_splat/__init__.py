"""Fake kernels and gradient formulas of the ``splat_*`` ops, registered by importing them."""

from pyext.ops._splat import bin, composite, project, sh, unproject

__all__ = ["bin", "composite", "project", "sh", "unproject"]
