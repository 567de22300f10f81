"""Checks that the functions of all families share: one error, before any work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STORAGE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(f"{name}: expected one of {known}, got {value!r}")


def check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: expected a positive number, got {value}")


def check_storage(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in STORAGE:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in STORAGE)
        raise TypeError(f"{name}: expected dtype {known}, got {tensor.dtype}")


def _fits(tensor: Tensor, shape: Sequence[int | str]) -> bool:
    sizes = tensor.shape
    if len(sizes) != len(shape):
        return False
    # Neither a generator nor zip: a call may take no longer than they do.
    for i, wanted in enumerate(shape):
        if sizes[i] != wanted and not isinstance(wanted, str):
            return False
    return True


def check_tensor(
    name: str,
    tensor: Tensor | None,
    shape: Sequence[int | str],
    like: Tensor,
    dtypes: Sequence[torch.dtype] | None = None,
) -> None:
    """Refuse another shape (a letter stands for any size), device or dtype; None passes.

    ``dtypes``: those allowed; by default that of ``like``.
    """
    if tensor is None:
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if not _fits(tensor, shape):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name}: expected shape [{wanted}], got {list(tensor.shape)}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: expected device {like.device}, got {tensor.device}")
    allowed = (like.dtype,) if dtypes is None else dtypes
    if tensor.dtype not in allowed:
        known = " or ".join(str(dtype) for dtype in allowed)
        raise TypeError(f"{name}: expected dtype {known}, got {tensor.dtype}")
