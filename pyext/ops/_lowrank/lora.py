"""Fake kernels and gradient formulas of `lowrank_lora_shrink` and `lowrank_lora_expand`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.interface.lowrank_checks import wide
from pyext.ops._lowrank.wanted import wants_gradient
from pyext.ops._refuse import refuse_double_backward

_ops = torch.ops.pyext


@torch.library.register_fake("pyext::lowrank_lora_shrink")
def _(x, A, idx, start, ids, scale, ranks):  # type: ignore[no-untyped-def]
    rank = A.shape[1] if ranks is None else max(ranks, default=0)
    return x.new_empty((x.shape[0], rank), dtype=wide(x))


@torch.library.register_fake("pyext::lowrank_lora_expand")
def _(base, z, B, idx, start, ids, offset, ranks):  # type: ignore[no-untyped-def]
    return base.new_empty(base.shape)


@torch.library.register_fake("pyext::lowrank_lora_expand_")
def _(base, z, B, idx, start, ids, offset, ranks):  # type: ignore[no-untyped-def]
    return None


@torch.library.register_fake("pyext::lowrank_lora_spread")
def _(z, A, idx, start, ids, scale, like, ranks):  # type: ignore[no-untyped-def]
    return like.new_empty(like.shape)


@torch.library.register_fake("pyext::lowrank_lora_outer")
def _(z, x, W, idx, start, ids, scale, ranks):  # type: ignore[no-untyped-def]
    return z.new_empty(W.shape)


def _setup_shrink(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *saved, ctx.ranks = inputs
    ctx.save_for_backward(*saved)


def _shrink_backward(ctx: Any, g_z: Tensor) -> tuple[Tensor | None, ...]:
    x, A, idx, start, ids, scale = ctx.saved_tensors
    need_x, need_A, _, _, _, need_scale, _ = ctx.needs_input_grad
    route, ranks = (idx, start, ids), ctx.ranks
    g_x = g_A = g_scale = None
    if need_x:
        g_x = _ops.lowrank_lora_spread(g_z, A, *route, scale, x, ranks)
    if need_A:
        g_A = _ops.lowrank_lora_outer(g_z, x, A, *route, scale, ranks).to(A.dtype)
    if need_scale:
        # The scale of an adapter stands before all that its factor makes.
        made = _ops.lowrank_lora_outer(g_z, x, A, *route, None, ranks) * A
        g_scale = (
            made.sum((1, 2))
            if ranks is None
            else torch.stack([own.sum() for own in made.split(ranks)])
        )
    return g_x, g_A, None, None, None, g_scale, None


def _setup_expand(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, *saved, ctx.offset, ctx.ranks = inputs
    ctx.save_for_backward(*saved)


def _expand_backward(ctx: Any, g_y: Tensor) -> tuple[Tensor | None, ...]:
    z, B, idx, start, ids = ctx.saved_tensors
    need_base, need_z, need_B = ctx.needs_input_grad[:3]
    route, ranks = (idx, start, ids), ctx.ranks
    part = g_y[:, ctx.offset : ctx.offset + B.shape[-1]]
    g_z = _ops.lowrank_lora_shrink(part, B, *route, None, ranks) if need_z else None
    g_B = None
    if need_B:
        g_B = _ops.lowrank_lora_outer(z, part, B, *route, None, ranks).to(B.dtype)
    return g_y if need_base else None, g_z, g_B, None, None, None, None, None


torch.library.register_autograd(
    "pyext::lowrank_lora_shrink", _shrink_backward, setup_context=_setup_shrink
)
torch.library.register_autograd(
    "pyext::lowrank_lora_expand", _expand_backward, setup_context=_setup_expand
)
refuse_double_backward("lowrank_lora_spread")
refuse_double_backward("lowrank_lora_outer")


class _ExpandInPlace(torch.autograd.Function):
    """`register_autograd` takes no op that writes to an argument."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, *arguments: Any) -> Tensor:
        _ops.lowrank_lora_expand_(base, *arguments)
        ctx.mark_dirty(base)
        _setup_expand(ctx, (base, *arguments), None)
        return base

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_y: Tensor) -> tuple[Tensor | None, ...]:
        return _expand_backward(ctx, g_y)


def lora_expand_(base: Tensor, z: Tensor, B: Tensor, *rest: Any) -> None:
    """base becomes y."""
    if torch.compiler.is_compiling():
        base.copy_(_ops.lowrank_lora_expand(base, z, B, *rest))
    elif wants_gradient(base, z, B):
        _ExpandInPlace.apply(base, z, B, *rest)
    else:
        _ops.lowrank_lora_expand_(base, z, B, *rest)
