"""Second derivatives, which no family has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def refuse_double_backward(op: str) -> None:
    """Give the backward op ``op`` a gradient formula that says there is none."""

    def refuse(ctx: Any, *_gradients: Tensor) -> None:
        raise NotImplementedError(f"{op}: second derivatives are not supported")

    torch.library.register_autograd(f"pyext::{op}", refuse)
