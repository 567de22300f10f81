"""The ops, one module per family: ``pyext.ops.splat``."""

from pyext._load import load as _load

_load()

from pyext.ops import splat  # noqa: E402

__all__ = ["splat"]
