"""Fake kernel and gradient formula of `circle_ddim_affine_step`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.register_fake("pyext::circle_ddim_affine_step")
def _(eps, x, coef, guidance, cfg, clip, dup):  # type: ignore[no-untyped-def]
    return x.new_empty((dup * x.shape[0], *x.shape[1:]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    eps, x, coef, *ctx.constants = inputs
    clips = ctx.constants[2] > 0
    ctx.save_for_backward(coef, *((eps, x) if clips else (None, None)))


def _predicted(eps: Tensor, guidance: float, cfg: bool) -> Tensor:
    if not cfg:
        return eps
    without, condition = eps.chunk(2)
    return without + guidance * (condition - without)


def _backward(ctx: Any, g_y: Tensor) -> tuple[Tensor | None, ...]:
    """The step is affine where x0 is not clipped: plain products with its coefficients."""
    coef, eps, x = ctx.saved_tensors
    guidance, cfg, clip, dup = ctx.constants
    wide = torch.promote_types(g_y.dtype, torch.float32)
    g = g_y.to(wide)
    if dup == 2:
        first, second = g.chunk(2)
        g = first + second
    k = coef.to(wide).reshape(*coef.shape, *[1] * (g.dim() - 1)).unbind(1)
    if clip > 0:
        clean = k[0] * x.to(wide) + k[1] * _predicted(eps.to(wide), guidance, cfg)
        through = g * k[2] * (clean.abs() <= clip)
        g_x, g_eps = k[3] * g + k[0] * through, k[4] * g + k[1] * through
    else:
        g_x, g_eps = k[0] * g, k[1] * g
    if cfg:
        g_eps = torch.cat([(1 - guidance) * g_eps, guidance * g_eps])
    return g_eps.to(g_y.dtype), g_x.to(g_y.dtype), None, None, None, None, None


torch.library.register_autograd("pyext::circle_ddim_affine_step", _backward, setup_context=_setup)
