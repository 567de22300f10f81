"""Whether a call of an op will have a backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def wants_gradient(*arguments: Any) -> bool:
    if not torch.is_grad_enabled():
        return False
    # No generator, which would take as long as an op does for a few rows.
    for x in arguments:  # noqa: SIM110
        if isinstance(x, Tensor) and x.requires_grad:
            return True
    return False
