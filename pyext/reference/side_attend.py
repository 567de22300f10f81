"""Mixing taps across tokens, in plain PyTorch.

Signatures are such as a torch op can have: plain lists, empty where a parameter is absent.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyext.reference.side_project import affine, sequences, widen


def side_confidence(
    pool_q: Tensor, pool: Tensor, a: Tensor | None, c: Tensor | None, w: Tensor, b: Tensor
) -> Tensor:
    """alpha [B, K']: see `pyext.reference.side.confidence`."""
    features = affine(pool.unsqueeze(2), a, c).squeeze(2)
    return ((widen(pool_q).unsqueeze(1) * features) @ widen(w) + widen(b)).softmax(-1)


def side_relu_attend(
    q: Tensor,
    h: Tensor,
    a: Tensor | None,
    c: Tensor | None,
    mask: Tensor | None,
    alpha: Tensor | None,
    score_bias: Tensor | None,
    rho: float,
    base_index: Tensor | None,
    base_scale: Tensor | None,
    eps: float,
    eps_mode: str,
    causal: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """z and rowsum [B, K', M]: see `pyext.reference.side.relu_attend`."""
    if cu_seqlens is not None:
        parts = []
        for i, s in enumerate(sequences(cu_seqlens)):
            own_alpha, own_base = (None if x is None else x[i : i + 1] for x in (alpha, base_index))
            one = (q[..., s, :], h[:, :, s], a, c, None, own_alpha, score_bias, rho, own_base)
            parts.append(side_relu_attend(*one, base_scale, eps, eps_mode, causal, None))
        zs, sums = zip(*parts, strict=True)
        return torch.cat(zs, -2), torch.cat(sums, -1)
    queries = widen(q).unsqueeze(1) if q.dim() == 3 else widen(q)
    features = affine(h, a, c)
    scores = queries @ features.mT
    if score_bias is not None:
        scores = scores + widen(score_bias)[:, None, None]
    if mask is not None:
        scores = scores * mask.to(scores.dtype)[:, None, None, :]
    weight = F.relu(scores)
    if causal:
        weight = weight.tril()
    rowsum = weight.sum(-1)
    divisor = rowsum + eps if eps_mode == "add" else rowsum.clamp(min=eps)
    mixed = (weight / divisor.unsqueeze(-1)) @ features
    if rho:
        mixed = mixed + rho * features
    if base_index is not None:
        base = features[torch.arange(len(base_index), device=q.device), :, base_index]
        if base_scale is not None:
            base = base * widen(base_scale)[:, None]
        mixed = mixed + base.unsqueeze(2)
    if alpha is not None:
        mixed = (mixed * widen(alpha)[:, :, None, None]).sum(1)
    return mixed.to(q.dtype), rowsum.detach()
