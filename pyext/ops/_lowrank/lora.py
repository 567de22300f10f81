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
def _(x, A, idx, start, ids, scale):  # type: ignore[no-untyped-def]
    return x.new_empty((x.shape[0], A.shape[1]), dtype=wide(x))


@torch.library.register_fake("pyext::lowrank_lora_expand")
def _(base, z, B, idx, start, ids, offset):  # type: ignore[no-untyped-def]
    return base.new_empty(base.shape)


@torch.library.register_fake("pyext::lowrank_lora_expand_")
def _(base, z, B, idx, start, ids, offset):  # type: ignore[no-untyped-def]
    return None


@torch.library.register_fake("pyext::lowrank_lora_spread")
def _(z, A, idx, start, ids, scale, like):  # type: ignore[no-untyped-def]
    return like.new_empty(like.shape)


@torch.library.register_fake("pyext::lowrank_lora_outer")
def _(z, x, idx, start, ids, adapters):  # type: ignore[no-untyped-def]
    return z.new_empty((adapters, z.shape[1], x.shape[1]))


def _setup_shrink(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _shrink_backward(ctx: Any, g_z: Tensor) -> tuple[Tensor | None, ...]:
    x, A, idx, start, ids, scale = ctx.saved_tensors
    need_x, need_A, _, _, _, need_scale = ctx.needs_input_grad
    g_x = g_A = g_scale = None
    if need_x:
        g_x = _ops.lowrank_lora_spread(g_z, A, idx, start, ids, scale, x)
    if need_A or need_scale:
        outer = _ops.lowrank_lora_outer(g_z, x, idx, start, ids, len(A))
        # The scale of an adapter stands before all that its factor makes.
        g_scale = (outer * A).sum((1, 2)) if need_scale else None
        g_A = outer if scale is None else scale[:, None, None] * outer
        g_A = g_A.to(A.dtype) if need_A else None
    return g_x, g_A, None, None, None, g_scale


def _setup_expand(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, *rest, ctx.offset = inputs
    ctx.save_for_backward(*rest)


def _expand_backward(ctx: Any, g_y: Tensor) -> tuple[Tensor | None, ...]:
    z, B, idx, start, ids = ctx.saved_tensors
    need_base, need_z, need_B = ctx.needs_input_grad[:3]
    part = g_y[:, ctx.offset : ctx.offset + B.shape[2]]
    g_z = _ops.lowrank_lora_shrink(part, B, idx, start, ids, None) if need_z else None
    g_B = None
    if need_B:
        g_B = _ops.lowrank_lora_outer(z, part, idx, start, ids, len(B)).to(B.dtype)
    return g_y if need_base else None, g_z, g_B, None, None, None, None


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
