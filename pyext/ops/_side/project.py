"""Fake kernels and gradient formulas of `side_project` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._refuse import refuse_double_backward
from pyext.ops._side.wide import wide

_ops = torch.ops.pyext


def empty_h(x: Tensor, taps: int, d: int, layout: str, packed: bool) -> Tensor:
    """h [B, K, N, d] of taps like ``x``, in the memory of a layout."""
    batch, tokens = (1, x.shape[0]) if packed else x.shape[:2]
    if layout == "layer":
        return x.new_empty((batch, taps, tokens, d))
    return x.new_empty((batch, tokens, taps, d)).transpose(1, 2)


@torch.library.register_fake("pyext::side_project")
def _(x, w, bias, pre_act, post_act, norm, eps, mask, cu_seqlens, layout, pool):  # type: ignore[no-untyped-def]
    d = w[0].shape[0]
    h = empty_h(x[0], len(x), d, layout, cu_seqlens is not None)
    samples = h.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1

    def sums(*shape: int) -> Tensor:
        return h.new_empty(shape, dtype=wide(h))

    stat0 = sums(*h.shape[:3]) if norm == "layer" else sums(0)
    if norm == "batch":
        stat0 = sums(len(x), d)
    stat1 = sums(len(x), d) if norm == "batch" else sums(0)
    return h, stat0, stat1, sums(samples, len(x), d) if pool else sums(0)


@torch.library.register_fake("pyext::side_project_backward")
def _(x, w, bias, *rest):  # type: ignore[no-untyped-def]
    need_x = rest[-1]
    g_x = [x.new_empty(x.shape if need else (0,)) for x, need in zip(x, need_x, strict=True)]
    return g_x, [m.new_empty(m.shape) for m in w], [b.new_empty(b.shape) for b in bias]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w, bias, pre_act, post_act, norm, eps, mask, cu_seqlens, layout, pool = inputs
    h, stat0, _, _ = output
    ctx.taps, ctx.biases, ctx.norm = len(x), len(bias), norm
    ctx.constants = (pre_act, post_act, norm, eps)
    ctx.pool = pool
    rstd = stat0 if norm == "layer" else None
    ctx.save_for_backward(*x, *w, *bias, mask, cu_seqlens, h, rstd)
    if norm == "layer":
        ctx.mark_non_differentiable(stat0)


def _backward(
    ctx: Any, g_h: Tensor, g_stat0: Tensor, g_stat1: Tensor, g_pool: Tensor
) -> tuple[Any, ...]:
    *lists, mask, cu_seqlens, h, rstd = ctx.saved_tensors
    K = ctx.taps
    x, w, bias = lists[:K], lists[K : 2 * K], lists[2 * K :]
    batch = (g_stat0, g_stat1) if ctx.norm == "batch" else (None, None)
    need_x = list(ctx.needs_input_grad[0])
    g_x, g_w, g_bias = _ops.side_project_backward(
        *(x, w, bias, *ctx.constants, mask, cu_seqlens, h, rstd),
        *(g_h, *batch, g_pool if ctx.pool else None, need_x),
    )
    g_x = [g if need else None for g, need in zip(g_x, need_x, strict=True)]
    return g_x, g_w, g_bias, *([None] * 8)


torch.library.register_autograd("pyext::side_project", _backward, setup_context=_setup)
refuse_double_backward("side_project_backward")


@torch.library.register_fake("pyext::side_affine_backward")
def _(g, h):  # type: ignore[no-untyped-def]
    return tuple(h.new_empty(h.shape[-1:], dtype=wide(h)) for _ in range(2))
