"""Interim: the formulas of `pyext.ops.circle` in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Interpolated(NamedTuple):
    z: Tensor
    gram: Tensor
    status: Tensor


def interp(
    pool, pairs, angles, *, norm="paper", min_sin=None, on_degenerate="raise", generator=None, dup=1
):
    a, b = pool[pairs[:, 0]].flatten(1).double(), pool[pairs[:, 1]].flatten(1).double()
    A, B, C = (a * a).sum(1), (b * b).sum(1), (a * b).sum(1)
    c = C / (A * B).sqrt()
    s = ((A * B - C * C).clamp_min(0) / (A * B)).sqrt()
    if min_sin is None:
        min_sin = {torch.float64: 1e-7, torch.float32: 1e-4}.get(pool.dtype, 1e-2)
    phi = angles.double()
    c_, s_ = c[:, None], s[:, None]
    status = torch.zeros(len(pairs), dtype=torch.uint8)
    if norm == "lerp":
        w0, w1 = 1 - phi, phi
    elif norm == "slerp":
        alpha = torch.atan2(s_, c_)
        w0, w1 = torch.sin((1 - phi) * alpha) / s_, torch.sin(phi * alpha) / s_
    elif norm == "gauss":
        w0, w1 = phi.cos(), phi.sin()
    else:
        w0, w1 = phi.cos() + phi.sin() * c_ / s_, -phi.sin() / s_
        if norm == "unit":
            mean = ((A + B) / 2).sqrt()
            w0, w1 = w0 * (mean / A.sqrt())[:, None], w1 * (mean / B.sqrt())[:, None]
    if norm in ("paper", "unit", "slerp"):
        status[(s < min_sin) & (c > 0)] = 2
        status[(s < min_sin) & (c < 0)] = 4
        status[~((A > 0) & (B > 0))] = 1
    bad = status > 0
    if bad.any():
        if on_degenerate == "raise":
            raise ValueError("degenerate")
        w0[bad], w1[bad] = 1.0, 0.0
    z = w0[..., None] * a[:, None] + w1[..., None] * b[:, None]
    return Interpolated(
        z.to(pool.dtype).view(*phi.shape, *pool.shape[1:]), torch.stack([A, B, C], 1), status
    )


def ddim_coefficients(alpha_cumprod_from, alpha_cumprod_to, prediction="epsilon"):
    f, t = alpha_cumprod_from.double(), alpha_cumprod_to.double()
    if prediction == "epsilon":
        k1 = (t / f).sqrt()
        k2 = (1 - t).sqrt() - k1 * (1 - f).sqrt()
    else:
        k1 = (t * f).sqrt() + ((1 - t) * (1 - f)).sqrt()
        k2 = ((1 - t) * f).sqrt() - (t * (1 - f)).sqrt()
    return torch.stack([k1, k2], -1)


def ddim_affine_step(eps, x, coef, *, guidance=1.0, cfg=False, dup=1):
    if cfg:
        u, c = eps.chunk(2)
        eps = u + guidance * (c - u)
    k = coef.to(x.device).view(len(x), 2, *[1] * (x.dim() - 1))
    return (k[:, 0] * x + k[:, 1] * eps).to(x.dtype)
