"""Projections of frozen hidden states to a small width, in plain PyTorch.

Signatures are such as a torch op can have: plain lists, empty where a parameter is absent.
Any float dtype, any device; half precision is computed in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def widen(x: Tensor) -> Tensor:
    """In the type that sums are computed in: float64 as it is, all others float32."""
    return x if x.dtype == torch.float64 else x.float()


def affine(h: Tensor, a: Tensor | None, c: Tensor | None) -> Tensor:
    """a o h + c of [B, K, N, d] activations, in the type of sums."""
    h = widen(h)
    if a is not None:
        h = h * widen(a)[:, None, :]
    return h if c is None else h + widen(c)[:, None, :]


def masked_mean(h: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the tokens [..., N, d] that count, [..., d]; 0 where none does."""
    if mask is None:
        return h.sum(-2) / max(h.shape[-2], 1)
    weight = mask.to(h.dtype).unsqueeze(-1)
    return (h * weight).sum(-2) / weight.sum(-2).clamp(min=1)


def sequences(cu_seqlens: Tensor) -> list[slice]:
    ends = cu_seqlens.tolist()
    return [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def arrange(h: Tensor, layout: str) -> Tensor:
    """[B, K, N, d] with the taps (``layer``) or the tokens (``token``) outermost in memory."""
    if layout == "layer":
        return h.contiguous()
    return h.transpose(1, 2).contiguous().transpose(1, 2)


def side_project(
    x: list[Tensor],
    w: list[Tensor],
    bias: list[Tensor],
    pre_act: str,
    post_act: str,
    norm: str,
    eps: float,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    layout: str,
    pool: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h [B, K, N, d], stat0, stat1, pool [B, K, d]: see `pyext.reference.side.project`."""
    if cu_seqlens is not None:
        x = [tap.unsqueeze(0) for tap in x]
    taps = []
    for k, tap in enumerate(x):
        u = ACTIVATIONS[pre_act](widen(tap)) @ widen(w[k]).T
        taps.append(u + widen(bias[k]) if bias else u)
    u = torch.stack(taps, 1)
    stat0, stat1 = u.new_empty(0), u.new_empty(0)
    if norm == "layer":
        centred = u - u.mean(-1, keepdim=True)
        stat0 = torch.rsqrt(centred.square().mean(-1) + eps)
        u = centred * stat0.unsqueeze(-1)
    elif norm == "batch":
        counted = u if mask is None else u * mask.to(u.dtype)[:, None, :, None]
        stat0, stat1 = counted.sum((0, 2)), (counted * u).sum((0, 2))
    h = ACTIVATIONS[post_act](u)
    pooled = u.new_empty(0)
    if pool and cu_seqlens is not None:
        pooled = torch.stack([masked_mean(h[0, :, s], None) for s in sequences(cu_seqlens)])
    elif pool:
        pooled = masked_mean(h, None if mask is None else mask[:, None])
    stored = arrange(h.to(x[0].dtype), layout)
    return stored, stat0.detach() if norm == "layer" else stat0, stat1, pooled


def side_project_gated(
    x: list[Tensor],
    w1: list[Tensor],
    b1: list[Tensor],
    w2: list[Tensor],
    b2: list[Tensor],
    w3: list[Tensor],
    b3: list[Tensor],
    layout: str,
) -> tuple[Tensor, Tensor]:
    """f and hid [B, K, N, d]: see `pyext.reference.side.project_gated`."""
    gated, hidden = [], []
    for k, tap in enumerate(x):
        h = F.relu(widen(tap) @ widen(w1[k]).T + widen(b1[k]))
        value = h @ widen(w2[k]).T + widen(b2[k]) + h
        gated.append(value * torch.sigmoid(h @ widen(w3[k]).T + widen(b3[k])))
        hidden.append(h)
    dtype = x[0].dtype
    f, hid = torch.stack(gated, 1).to(dtype), torch.stack(hidden, 1).to(dtype)
    return arrange(f, layout), arrange(hid, layout)
