"""Loads the compiled module, or says why it cannot be loaded and what mends it."""

from __future__ import annotations

from importlib.metadata import requires
from typing import Any

import torch

from pyext.errors import UserError


class CompiledPartError(UserError, ImportError):
    """The compiled part cannot be loaded; the message names the command that mends it."""


def _built_for() -> str:
    pins = [line for line in requires("pyext-kernels") or [] if line.startswith("torch==")]
    return pins[0] if pins else "torch of another version"


def load() -> Any:
    """Return ``pyext._C``.

    Raises:
        CompiledPartError: it is missing, or was built against another torch.
    """
    try:
        from pyext import _C
    except ImportError as error:
        raise CompiledPartError(
            f"pyext: the compiled part does not load ({error}). It was built for {_built_for()}; "
            f"this is torch {torch.__version__}. Reinstall it against this torch: "
            "pip install --no-build-isolation --force-reinstall --no-deps pyext-kernels"
        ) from error
    return _C
