"""Pooling feature maps of convolutional stages to tokens, in plain PyTorch.

Signatures are such as a torch op can have: plain lists, empty where a parameter is absent.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyext.reference.side_project import widen


def _windows(x: Tensor, r: int) -> Tensor:
    """[B, C, H, W] to [B, C, h, w, r r]."""
    batch, channels, height, width = x.shape
    split = x.reshape(batch, channels, height // r, r, width // r, r)
    return split.permute(0, 1, 2, 4, 3, 5).flatten(-2)


def side_guided_pool(x: Tensor, guide: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y [B, h w, C] and score [B, H, W]: see `pyext.reference.side.guided_pool`."""
    r = x.shape[2] // guide.shape[2]
    windows = _windows(widen(x), r)
    score = (windows * widen(guide).unsqueeze(-1)).sum(1)
    weight = F.relu(score)
    share = weight / (weight.sum(-1, keepdim=True) + eps) + 1 / r**2
    y = torch.einsum("bchwp,bhwp->bhwc", windows, share).flatten(1, 2)
    batch, h, w = score.shape[:3]
    whole = score.reshape(batch, h, w, r, r).transpose(2, 3).reshape(batch, h * r, w * r)
    return y.to(x.dtype), whole.detach()


def side_maxavg_pool(x: Tensor, r: int) -> Tensor:
    """y [B, h w, C]: see `pyext.reference.side.maxavg_pool`."""
    windows = _windows(widen(x), r)
    y = windows.amax(-1) + windows.mean(-1)
    return y.flatten(2).transpose(1, 2).contiguous().to(x.dtype)
