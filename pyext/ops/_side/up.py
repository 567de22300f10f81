"""Fake kernels and gradient formulas of `side_up` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._refuse import refuse_double_backward
from pyext.ops._side.wide import wide

_ops = torch.ops.pyext


@torch.library.register_fake("pyext::side_up")
def _(x, w, bias, pre_act, post_act, gamma, *_rest):  # type: ignore[no-untyped-def]
    shape = (*x.shape[:-1], w.shape[0])
    stat = x.new_empty(x.shape[:-1] if gamma is not None else (0,), dtype=wide(x))
    return x.new_empty(shape), stat, x.new_empty(shape if gamma is not None else (0,))


@torch.library.register_fake("pyext::side_up_backward")
def _(x, w, bias, pre_act, post_act, gamma, *rest):  # type: ignore[no-untyped-def]
    need_x, need_scales = rest[-2:]
    width = w.shape[0]
    norm = width if gamma is not None else 0

    def sums(count: int) -> Tensor:
        return x.new_empty((count,), dtype=wide(x))

    g_bias = x.new_empty((width if bias is not None else 0,))
    g_x = x.new_empty(x.shape if need_x else (0,))
    return g_x, w.new_empty(w.shape), g_bias, sums(norm), sums(norm), sums(2 * need_scales)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w, bias, pre_act, post_act, gamma, beta, eps, residual, res_scale, out_scale, p, seed = (
        inputs
    )
    _, stat, xhat = output
    ctx.constants = (pre_act, post_act, eps, p, seed)
    # The residual is needed for the gradient of its scale only.
    own = residual if ctx.needs_input_grad[9] else None
    norm = (stat, xhat) if gamma is not None else (None, None)
    ctx.save_for_backward(x, w, bias, gamma, beta, own, res_scale, out_scale, *norm)
    ctx.mark_non_differentiable(stat, xhat)


def up_backward(
    saved: tuple[Tensor | None, ...],
    constants: tuple[Any, ...],
    g_y: Tensor,
    need_x: bool,
    need_scales: tuple[bool, bool] = (False, False),
) -> list[Tensor | None]:
    """Gradients to the thirteen arguments of `side_up`, from what its forward keeps.

    ``saved``: x, w, bias, gamma, beta, residual (needed for res_scale's gradient only), res_scale,
    out_scale, stat, xhat. ``constants``: pre_act, post_act, eps, dropout_p, seed.
    """
    x, w, bias, gamma, beta, residual, res_scale, out_scale, stat, xhat = saved
    pre_act, post_act, eps, p, seed = constants
    assert x is not None
    scales = any(need_scales)
    own_scale = res_scale if residual is not None else None
    g_x, g_w, g_bias, g_gamma, g_beta, g_scales = _ops.side_up_backward(
        *(x, w, bias, pre_act, post_act, gamma, beta, eps, residual, own_scale, out_scale),
        *(p, seed, stat, xhat, g_y, need_x, scales),
    )

    def of(parameter: Tensor | None, gradient: Tensor) -> Tensor | None:
        return None if parameter is None else gradient.to(parameter.dtype)

    def of_scale(i: int, scale: Tensor | None) -> Tensor | None:
        if scale is None or not need_scales[i]:
            return None
        return g_scales[i].to(scale.dtype).reshape(scale.shape)

    g_residual = g_y if res_scale is None else g_y * res_scale.to(g_y.dtype)
    norm = (of(gamma, g_gamma), of(beta, g_beta))
    return [
        *(g_x if need_x else None, g_w, of(bias, g_bias), None, None, *norm, None, g_residual),
        *(of_scale(0, res_scale), of_scale(1, out_scale), None, None),
    ]


def _backward(ctx: Any, g_y: Tensor, _stat: Tensor, _xhat: Tensor) -> tuple[Tensor | None, ...]:
    need = ctx.needs_input_grad
    grads = up_backward(ctx.saved_tensors, ctx.constants, g_y, need[0], (need[9], need[10]))
    if not need[8]:
        grads[8] = None
    return tuple(grads)


torch.library.register_autograd("pyext::side_up", _backward, setup_context=_setup)
refuse_double_backward("side_up_backward")
