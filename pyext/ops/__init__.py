"""The ops, one module per family: ``pyext.ops.circle``, ``side``, ``solve``, ``splat``."""

from pyext._load import load as _load

_load()

from pyext.ops import circle, side, solve, splat  # noqa: E402

__all__ = ["circle", "side", "solve", "splat"]
