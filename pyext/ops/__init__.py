"""The ops, one module per family: ``pyext.ops.circle``, ``lowrank``, ``side`` and so on."""

from pyext._load import load as _load

_load()

from pyext.ops import circle, lowrank, side, solve, splat  # noqa: E402

__all__ = ["circle", "lowrank", "side", "solve", "splat"]
