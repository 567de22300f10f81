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


def _attend(
    q: Tensor,
    features: Tensor,
    mask: Tensor | None,
    alpha: Tensor | None,
    score_bias: Tensor | None,
    rho: float,
    base_index: Tensor | None,
    base_scale: Tensor | None,
    eps: float,
    eps_mode: str,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Of q [B, K' or 1, M, d] and features [B, K', N, d]."""
    scores = q @ features.mT
    if score_bias is not None:
        scores = scores + widen(score_bias)[:, None, None]
    if mask is not None:
        scores = scores * mask.to(scores.dtype)[:, None, None, :]
    weights = F.relu(scores)
    if causal:
        weights = weights.tril()
    rowsum = weights.sum(-1)
    divisor = rowsum + eps if eps_mode == "add" else rowsum.clamp(min=eps)
    mixed = (weights / divisor.unsqueeze(-1)) @ features
    if rho:
        mixed = mixed + rho * features
    if base_index is not None:
        samples = torch.arange(len(base_index), device=q.device)
        base = features[samples, :, base_index]
        if base_scale is not None:
            base = base * widen(base_scale)[:, None]
        mixed = mixed + base.unsqueeze(2)
    if alpha is not None:
        mixed = (mixed * widen(alpha)[:, :, None, None]).sum(1)
    return mixed, rowsum


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
    queries = widen(q).unsqueeze(1) if q.dim() == 3 else widen(q)
    features = affine(h, a, c)
    constants = (rho, base_index, base_scale, eps, eps_mode, causal)
    if cu_seqlens is None:
        z, rowsum = _attend(queries, features, mask, alpha, score_bias, *constants)
        return z.to(q.dtype), rowsum.detach()
    parts = []
    for i, s in enumerate(sequences(cu_seqlens)):
        one = slice(i, i + 1)
        at = None if base_index is None else base_index[one]
        weights = None if alpha is None else alpha[one]
        part = (rho, at, base_scale, eps, eps_mode, causal)
        parts.append(_attend(queries[:, :, s], features[:, :, s], None, weights, score_bias, *part))
    z = torch.cat([part[0] for part in parts], -2)
    return z.to(q.dtype), torch.cat([part[1] for part in parts], -1).detach()
