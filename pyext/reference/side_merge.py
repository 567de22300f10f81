"""Mixing taps inside a token, and the tail, in plain PyTorch.

Signatures are such as a torch op can have: plain lists, empty where a parameter is absent.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyext.reference.side_project import ACTIVATIONS, affine, widen

MASK32 = 0xFFFFFFFF


def side_antired(
    g: Tensor,
    h: Tensor,
    a: Tensor | None,
    c: Tensor | None,
    w: Tensor,
    b: Tensor,
    eps_l1: float,
    eps_l2: float,
    add_guide: bool,
) -> tuple[Tensor, Tensor]:
    """z [B, N, d] and beta [B, N, K']: see `pyext.reference.side.antired`."""
    f = affine(h, a, c).transpose(1, 2)
    guide = widen(g).unsqueeze(2)
    square = f.square().sum(-1, keepdim=True)
    # The square root has no gradient at zero: a zero vector stays zero, and is alone with itself.
    norm = torch.where(square > 0, square, 1).sqrt()
    unit = torch.where(square > 0, f / (norm + eps_l2), 0)
    redundancy = F.relu(unit @ unit.mT).sum(-1)
    redundancy = torch.where(square.squeeze(-1) > 0, redundancy, 1)
    relevance = F.relu((f * guide) @ widen(w) + widen(b))
    score = relevance / redundancy
    beta = score / (score.sum(-1, keepdim=True) + eps_l1)
    z = (beta.unsqueeze(-1) * f).sum(2)
    if add_guide:
        z = z + guide.squeeze(2)
    return z.to(g.dtype), beta.detach()


def _hash32(x: Tensor) -> Tensor:
    """Bijection of 32-bit integers (Ellis 2018, "lowbias32"), held in int64."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & MASK32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & MASK32
    return x ^ (x >> 16)


def dropout_keep(count: int, p: float, seed: int, device: torch.device) -> Tensor:
    """Which of ``count`` elements stay, by their index and the seed alone."""
    index = torch.arange(count, dtype=torch.int64, device=device)
    key = torch.tensor([seed & MASK32, (seed >> 32) & MASK32], dtype=torch.int64, device=device)
    stream = _hash32(key[0] ^ _hash32(key[1] ^ _hash32(index >> 32)))
    return _hash32((index & MASK32) ^ stream) >= int(p * 2.0**32)


def side_up(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    pre_act: str,
    post_act: str,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    residual: Tensor | None,
    res_scale: Tensor | None,
    out_scale: Tensor | None,
    dropout_p: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [..., E], 1 / sigma and the normalised: see `pyext.reference.side.up`."""
    y = ACTIVATIONS[pre_act](widen(x)) @ widen(w).T
    if bias is not None:
        y = y + widen(bias)
    stat, xhat = y.new_empty(0), x.new_empty(0)
    if gamma is not None and beta is not None:
        centred = y - y.mean(-1, keepdim=True)
        stat = torch.rsqrt(centred.square().mean(-1) + eps)
        y = centred * stat.unsqueeze(-1)
        xhat = y.detach().to(x.dtype)
        y = y * widen(gamma) + widen(beta)
    y = ACTIVATIONS[post_act](y)
    if dropout_p > 0:
        keep = dropout_keep(y.numel(), dropout_p, seed, y.device).reshape(y.shape)
        y = torch.where(keep, y / (1 - dropout_p), 0)
    if out_scale is not None:
        y = y * widen(out_scale)
    if residual is not None:
        y = y + (widen(residual) if res_scale is None else widen(residual) * widen(res_scale))
    return y.to(x.dtype), stat.detach(), xhat
