"""The autocast rule of ops that compute in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def _widen(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dtype not in (torch.float16, torch.bfloat16):
        return value
    return value.float() if torch.is_autocast_enabled(value.device.type) else value


def float32_under_autocast(function: Callable[..., Result]) -> Callable[..., Result]:
    """Pass half-precision tensors on in float32 where autocast, which made them, is enabled.

    Without autocast they are passed as they are, for the function to refuse.
    """

    @functools.wraps(function)
    def widened(*args: Any, **kwargs: Any) -> Result:
        return function(*map(_widen, args), **{k: _widen(v) for k, v in kwargs.items()})

    return widened
