"""Fake kernels and gradient formulas of `lowrank_mix`, beside its base and in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.interface.lowrank_checks import as_rows, wide
from pyext.ops._lowrank.wanted import wants_gradient
from pyext.ops._refuse import refuse_double_backward

_ops = torch.ops.pyext

# Tensor arguments behind x and base, in the order of the op; a is added to u and not read again.
_NAMES = ("A", "B", "a", "c", "M", "m", "scale", "gate")


@torch.library.register_fake("pyext::lowrank_mix")
def _(x, base, A, B, a, c, M, m, scale, gate, has_inner, ranks, frozen, act):  # type: ignore[no-untyped-def]
    u = x.new_empty((x.shape[0], sum(ranks)), dtype=wide(x))
    return x.new_empty((x.shape[0], B.shape[2])), u


@torch.library.register_fake("pyext::lowrank_mix_")
def _(base, x, A, B, a, c, M, m, scale, gate, has_inner, ranks, frozen, act):  # type: ignore[no-untyped-def]
    return x.new_empty((x.shape[0], sum(ranks)), dtype=wide(x))


@torch.library.register_fake("pyext::lowrank_mix_backward")
def _(g_y, x, u, A, B, c, M, m, scale, gate, has_inner, ranks, frozen, act, needs):  # type: ignore[no-untyped-def]
    (count, rank, _), kind = A.shape, wide(x)
    shapes = (A.shape, B.shape, (count, rank), (count, B.shape[2]), (count, rank, rank))
    rest = (*shapes, (count, rank), (count,), (x.shape[0], count))
    wanted = zip(rest, needs[1:], strict=True)
    g_x = x.new_empty(x.shape if needs[0] else (0,))
    return g_x, *(x.new_empty(shape if need else (0,), dtype=kind) for shape, need in wanted)


def _save(ctx: Any, x: Tensor, u: Tensor, tensors: tuple[Any, ...], constants: Any) -> None:
    ctx.constants = constants
    ctx.dtypes = [None if t is None else t.dtype for t in tensors]
    A, B, _, *rest = tensors
    ctx.save_for_backward(x, u, A, B, *rest)


def _gradients(ctx: Any, g_y: Tensor, needs: list[bool]) -> list[Tensor | None]:
    """Of x and the tensors of `_NAMES`; None where none is needed."""
    given = [True, *(dtype is not None for dtype in ctx.dtypes)]
    wanted = [need and there for need, there in zip(needs, given, strict=True)]
    results = _ops.lowrank_mix_backward(g_y, *ctx.saved_tensors, *ctx.constants, wanted)
    dtypes = [g_y.dtype, *ctx.dtypes]
    return [
        g.to(dtype) if want else None
        for g, want, dtype in zip(results, wanted, dtypes, strict=True)
    ]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, *rest = inputs
    _, u = output
    ctx.mark_non_differentiable(u)
    _save(ctx, x, u, tuple(rest[: len(_NAMES)]), rest[len(_NAMES) :])


def _backward(ctx: Any, g_y: Tensor, _u: Tensor) -> tuple[Tensor | None, ...]:
    need_x, need_base, *needs = ctx.needs_input_grad[: 2 + len(_NAMES)]
    g_x, *rest = _gradients(ctx, g_y, [need_x, *needs])
    return g_x, g_y if need_base else None, *rest, None, None, None, None


torch.library.register_autograd("pyext::lowrank_mix", _backward, setup_context=_setup)
refuse_double_backward("lowrank_mix_backward")


class _MixInPlace(torch.autograd.Function):
    """`register_autograd` takes no op that writes to an argument."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, x: Tensor, *arguments: Any) -> Tensor:
        u = _ops.lowrank_mix_(as_rows(base), x, *arguments)
        ctx.mark_dirty(base)
        _save(ctx, x, u, arguments[: len(_NAMES)], arguments[len(_NAMES) :])
        return base

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_y: Tensor) -> tuple[Tensor | None, ...]:
        flat = as_rows(g_y)
        g_x, *rest = _gradients(ctx, flat, list(ctx.needs_input_grad[1 : 2 + len(_NAMES)]))
        return g_y, g_x, *rest, None, None, None, None


def mix_(base: Tensor, x: Tensor, *arguments: Any) -> None:
    """base becomes y: [..., Do], contiguous."""
    if torch.compiler.is_compiling():
        y, _ = _ops.lowrank_mix(x, as_rows(base), *arguments)
        base.copy_(y.view(base.shape))
    elif wants_gradient(base, x, *arguments):
        _MixInPlace.apply(base, x, *arguments)
    else:
        _ops.lowrank_mix_(as_rows(base), x, *arguments)
