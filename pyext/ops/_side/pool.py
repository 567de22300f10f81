"""Fake kernels and gradient formulas of `side_guided_pool` and `side_maxavg_pool`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._refuse import refuse_double_backward
from pyext.ops._side.wide import wide

_ops = torch.ops.pyext


@torch.library.register_fake("pyext::side_maxavg_pool")
def _(x, r):  # type: ignore[no-untyped-def]
    batch, channels, height, width = x.shape
    return x.new_empty((batch, height // r * (width // r), channels))


@torch.library.register_fake("pyext::side_guided_pool")
def _(x, guide, eps):  # type: ignore[no-untyped-def]
    batch, channels, h, w = guide.shape
    score = x.new_empty((batch, *x.shape[2:]), dtype=wide(x))
    return x.new_empty((batch, h * w, channels)), score


@torch.library.register_fake("pyext::side_guided_pool_backward")
def _(x, guide, eps, score, g_y, need_x):  # type: ignore[no-untyped-def]
    return guide.new_empty(guide.shape), x.new_empty(x.shape if need_x else (0,))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, guide, ctx.eps = inputs
    ctx.save_for_backward(x, guide, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, g_y: Tensor, _g_score: Tensor) -> tuple[Tensor | None, ...]:
    x, guide, score = ctx.saved_tensors
    need_x = ctx.needs_input_grad[0]
    g_guide, g_x = _ops.side_guided_pool_backward(x, guide, ctx.eps, score, g_y, need_x)
    return g_x if need_x else None, g_guide, None


torch.library.register_autograd("pyext::side_guided_pool", _backward, setup_context=_setup)
refuse_double_backward("side_guided_pool_backward")
