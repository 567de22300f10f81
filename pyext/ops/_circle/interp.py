"""Fake kernels and gradient formulas of `circle_interp` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._refuse import refuse_double_backward

_ops = torch.ops.pyext


@torch.library.register_fake("pyext::circle_interp")
def _(pool, pairs, angles, norm, min_sin, raise_degenerate, dup):  # type: ignore[no-untyped-def]
    copies = (2,) if dup == 2 else ()
    z = pool.new_empty((*copies, *angles.shape, *pool.shape[1:]))
    gram = pool.new_empty((pairs.shape[0], 3), dtype=torch.float64)
    return z, gram, pool.new_empty((pairs.shape[0],), dtype=torch.uint8)


@torch.library.register_fake("pyext::circle_interp_")
def _(z, pool, pairs, angles, *_rest):  # type: ignore[no-untyped-def]
    gram = pool.new_empty((pairs.shape[0], 3), dtype=torch.float64)
    return gram, pool.new_empty((pairs.shape[0],), dtype=torch.uint8)


@torch.library.register_fake("pyext::circle_interp_backward")
def _(g_z, pool, pairs, angles, gram, status, norm, need_pool):  # type: ignore[no-untyped-def]
    return pool.new_empty(pool.shape if need_pool else (0,)), angles.new_empty(angles.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    pool, pairs, angles, ctx.norm, _, _, ctx.dup = inputs
    _, gram, status = output
    ctx.save_for_backward(pool, pairs, angles, gram, status)
    ctx.mark_non_differentiable(gram, status)


def _backward(ctx: Any, g_z: Tensor, _gram: Tensor, _status: Tensor) -> tuple[Tensor | None, ...]:
    need_pool, _, need_angles = ctx.needs_input_grad[:3]
    once = g_z[0] + g_z[1] if ctx.dup == 2 else g_z
    g_pool, g_angles = _ops.circle_interp_backward(once, *ctx.saved_tensors, ctx.norm, need_pool)
    gradients = (g_pool if need_pool else None, None, g_angles if need_angles else None)
    return (*gradients, None, None, None, None)


torch.library.register_autograd("pyext::circle_interp", _backward, setup_context=_setup)
refuse_double_backward("circle_interp_backward")
