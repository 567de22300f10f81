"""Inversion circles in plain PyTorch, in float64; gradients come from autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.interface.circle import (
    alpha_of,
    ddim_coefficients,
    make_ddim_affine_step,
    make_interp,
    phi_from_lambda,
)

REASONS = {
    1: "has a vector of length zero",
    2: "is parallel",
    4: "is antipodal",
    8: "has a value that is not finite",
}


def _status(gram: Tensor, norm: str, min_sin: float) -> Tensor:
    """[P] uint8: see `interp`."""
    cosine, sine = _cosine_and_sine(gram)
    status = torch.zeros(len(gram), dtype=torch.uint8, device=gram.device)
    if norm in ("paper", "unit", "slerp"):
        status[sine < min_sin] = 4
        status[(sine < min_sin) & (cosine > 0)] = 2
        status[(gram[:, :2] <= 0).any(1)] = 1
    status[~gram.isfinite().all(1)] = 8
    return status


def _cosine_and_sine(gram: Tensor) -> tuple[Tensor, Tensor]:
    aa, bb, ab = gram.unbind(1)
    cosine = ab / (aa.sqrt() * bb.sqrt())
    return cosine, ((1 - cosine) * (1 + cosine)).clamp_min(0).sqrt()


def _weights(gram: Tensor, angles: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Of a and b, [P, K] each."""
    if norm == "lerp":
        return 1 - angles, angles
    if norm == "gauss":
        return angles.cos(), angles.sin()
    cosine, sine = (x[:, None] for x in _cosine_and_sine(gram))
    phi = -angles * alpha_of(gram)[:, None] if norm == "slerp" else angles
    first, second = phi.cos() + phi.sin() * cosine / sine, -phi.sin() / sine
    if norm == "unit":
        aa, bb = gram[:, :1], gram[:, 1:2]
        radius = ((aa + bb) / 2).sqrt()
        return first * radius / aa.sqrt(), second * radius / bb.sqrt()
    return first, second


def _refuse(status: Tensor, gram: Tensor, pairs: Tensor, min_sin: float) -> None:
    for p in status.nonzero().flatten().tolist():
        why = int(status[p])
        sine = float(_cosine_and_sine(gram[p : p + 1])[1])
        angle = f": sin(alpha) = {sine:.6g}, below min_sin = {min_sin:g}" if why in (2, 4) else ""
        raise ValueError(
            f"pairs: pair {p} {tuple(pairs[p].tolist())} {REASONS[why]}{angle}; draw another pair, "
            "or set on_degenerate"
        )


def circle_interp(
    pool: Tensor,
    pairs: Tensor,
    angles: Tensor,
    norm: str,
    min_sin: float,
    raise_degenerate: bool,
    dup: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """z, gram and status: see `pyext.reference.circle.interp`."""
    for p, pair in enumerate(pairs.tolist()):
        wrong = [n for n in pair if not 0 <= n < len(pool)]
        if wrong:
            raise ValueError(
                f"pairs: expected indices from 0 to below {len(pool)}, the rows of pool, got "
                f"{wrong[0]} in pair {p}"
            )
    rows = pool.flatten(1).double()
    a, b = rows[pairs[:, 0]], rows[pairs[:, 1]]
    gram = torch.stack([(a * a).sum(1), (b * b).sum(1), (a * b).sum(1)], 1)
    status = _status(gram.detach(), norm, min_sin)
    if raise_degenerate:
        _refuse(status, gram.detach(), pairs, min_sin)
    good = (status == 0)[:, None]
    # Where there is no circle its formula must not be asked, not even by its gradient.
    safe = torch.where(good, gram, gram.new_tensor([1.0, 1.0, 0.0]))
    first, second = _weights(safe, angles.double(), norm)
    first = torch.where(good, first, torch.ones_like(first))
    second = torch.where(good, second, torch.zeros_like(second))
    point = torch.where(
        good[..., None],
        first[..., None] * a[:, None] + second[..., None] * b[:, None],
        a[:, None],
    )
    z = point.to(pool.dtype).reshape(*angles.shape, *pool.shape[1:])
    return torch.stack([z, z]) if dup == 2 else z, gram.detach(), status


def circle_interp_(z: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """gram and status; z is filled."""
    point, gram, status = circle_interp(*arguments)
    z.copy_(point)
    return gram, status


def circle_ddim_affine_step(
    eps: Tensor, x: Tensor, coef: Tensor, guidance: float, cfg: bool, clip: float, dup: int
) -> Tensor:
    """x': see `pyext.reference.circle.ddim_affine_step`."""
    wide, sample = eps.double(), x.double()
    if cfg:
        without, condition = wide.chunk(2)
        wide = condition if guidance == 1 else without + guidance * (condition - without)
    k = coef.reshape(*coef.shape, *[1] * (x.dim() - 1)).unbind(1)
    if clip > 0:
        clean = (k[0] * sample + k[1] * wide).clamp(-clip, clip)
        y = k[2] * clean + k[3] * sample + k[4] * wide
    else:
        y = k[0] * sample + k[1] * wide
    y = y.to(x.dtype)
    return torch.cat([y, y]) if dup == 2 else y


interp = make_interp(circle_interp, circle_interp_)
ddim_affine_step = make_ddim_affine_step(circle_ddim_affine_step)

__all__ = ["ddim_coefficients", "ddim_affine_step", "interp", "phi_from_lambda"]
