"""The ops, one module per family: ``pyext.ops.side``, ``pyext.ops.solve``, ``pyext.ops.splat``."""

from pyext._load import load as _load

_load()

from pyext.ops import side, solve, splat  # noqa: E402

__all__ = ["side", "solve", "splat"]
