"""The ops, one module per family: ``pyext.ops.circle``, ``side``, ``splat``."""

from pyext._load import load as _load

_load()

from pyext.ops import circle, side, splat  # noqa: E402

__all__ = ["circle", "side", "splat"]
