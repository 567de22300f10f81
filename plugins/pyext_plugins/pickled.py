"""Files that others wrote by `torch.save`, read as tensors alone."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from pyext.errors import UserError


def read_tensors(path: Path) -> object:
    """Tensors and plain containers of a file.

    PyTorch's reader for weights makes nothing else, runs no code of the file, and refuses whatever
    more is asked for.

    Raises:
        UserError: it cannot be read, or asks for more.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is cut off"
        raise UserError(f"{path} cannot be read as tensors alone: {reason}") from error
