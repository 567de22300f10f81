"""Fake kernels and gradient formulas of `lowrank_rows`, and its form that writes in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.interface.lowrank_checks import wide
from pyext.ops._lowrank.wanted import wants_gradient
from pyext.ops._refuse import refuse_double_backward

_ops = torch.ops.pyext


def _saved(h: Tensor, A: Tensor, rows: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """kept, z and u."""
    count = rows.shape[0] if save else 0
    z, u = (h.new_empty((count, A.shape[1]), dtype=wide(h)) for _ in range(2))
    return h.new_empty((count, h.shape[-1])), z, u


@torch.library.register_fake("pyext::lowrank_rows")
def _(h, A, B, a, rows, group, scale, act, form, save):  # type: ignore[no-untyped-def]
    return h.new_empty(h.shape), *_saved(h, A, rows, save)


@torch.library.register_fake("pyext::lowrank_rows_")
def _(h, A, B, a, rows, group, scale, act, form, save):  # type: ignore[no-untyped-def]
    return _saved(h, A, rows, save)


@torch.library.register_fake("pyext::lowrank_rows_backward")
def _(g, kept, z, u, A, B, a, rows, group, scale, act, form, need):  # type: ignore[no-untyped-def]
    def where(needed: bool, tensor: Tensor | None) -> Tensor:
        like = g if tensor is None else tensor
        return like.new_empty(like.shape if needed else (0,))

    return tuple(where(*pair) for pair in zip(need, (g, A, B, a, scale), strict=True))


def _keep(ctx: Any, inputs: tuple[Any, ...], saved: tuple[Tensor, ...]) -> None:
    _h, A, B, a, rows, group, scale, ctx.act, ctx.form = inputs
    ctx.save_for_backward(*saved, A, B, a, rows, group, scale)


def _gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    """Of h, A, B, a, rows, group, scale, act and form."""
    h, A, B, a, _, _, scale = ctx.needs_input_grad[:7]
    need = [h, A, B, a, scale]
    found = _ops.lowrank_rows_backward(g, *ctx.saved_tensors, ctx.act, ctx.form, need)
    g_h, g_A, g_B, g_a, g_scale = (
        x if needed else None for x, needed in zip(found, need, strict=True)
    )
    return g_h, g_A, g_B, g_a, None, None, g_scale, None, None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *arguments, _save = inputs
    _out, *saved = output
    _keep(ctx, tuple(arguments), tuple(saved))
    ctx.mark_non_differentiable(*saved)


def _backward(ctx: Any, g: Tensor, *_saved: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(ctx, g), None


torch.library.register_autograd("pyext::lowrank_rows", _backward, setup_context=_setup)
refuse_double_backward("lowrank_rows_backward")


class _InPlace(torch.autograd.Function):
    """An op that writes its argument cannot be given a gradient; a function around it can."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        h: Tensor = inputs[0]
        _keep(ctx, inputs, _ops.lowrank_rows_(*inputs, True))
        ctx.mark_dirty(h)
        return h

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, g)


def rows(*arguments: Any) -> tuple[Tensor, ...]:
    """`lowrank_rows`, which keeps what a backward needs where there will be one."""
    out: tuple[Tensor, ...] = _ops.lowrank_rows(*arguments, wants_gradient(*arguments))
    return out


def rows_(h: Tensor, *arguments: Any) -> None:
    """`lowrank_rows_` with a gradient; to a compiler, which cannot look into it, a copy."""
    if not wants_gradient(h, *arguments):
        _ops.lowrank_rows_(h, *arguments, False)
    elif torch.compiler.is_compiling():
        h.copy_(_ops.lowrank_rows(h, *arguments, True)[0])
    else:
        _InPlace.apply(h, *arguments)
