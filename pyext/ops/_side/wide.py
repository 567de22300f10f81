"""The type that sums over activations have."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(tensor: Tensor) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
