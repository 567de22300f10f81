"""Second derivatives, which the family ``splat`` does not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _refuse(ctx: Any, *_gradients: Tensor) -> None:
    raise NotImplementedError("rasterization: second derivatives are not supported")


def refuse_double_backward(op: str) -> None:
    """Give the backward op ``op`` a gradient formula that says there is none."""
    torch.library.register_autograd(f"pyext::{op}", _refuse)
