"""Fake kernels and gradient formulas of `side_relu_attend` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._refuse import refuse_double_backward
from pyext.ops._side.empty import like_activations, like_given
from pyext.ops._side.wide import wide

_ops = torch.ops.pyext

# Positions of the tensors among the inputs; the others are constants.
_TENSORS = (0, 1, 2, 3, 4, 5, 6, 8, 9, 13)
_DIFFERENTIABLE = (0, 1, 2, 3, 5, 6, 9)


@torch.library.register_fake("pyext::side_relu_attend")
def _(q, h, a, c, mask, alpha, score_bias, rho, base_index, base_scale, *form):  # type: ignore[no-untyped-def]
    batch, taps, _, d = h.shape
    rows = q.shape[-2]
    shape = (batch, taps, rows, d) if alpha is None else (batch, rows, d)
    return q.new_empty(shape), q.new_empty((batch, taps, rows), dtype=wide(q))


@torch.library.register_fake("pyext::side_relu_attend_backward")
def _(g_z, rowsum, q, h, a, c, mask, alpha, score_bias, rho, base_index, base_scale, *form):  # type: ignore[no-untyped-def]
    given = (like_given(x, q) for x in (a, c, alpha, score_bias, base_scale))
    return q.new_empty(q.shape), like_activations(h), *given


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.inputs = [None if i in _TENSORS else value for i, value in enumerate(inputs)]
    ctx.save_for_backward(output[1], *(inputs[i] for i in _TENSORS))
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, g_z: Tensor, _g_rowsum: Tensor | None) -> tuple[Tensor | None, ...]:
    rowsum, *tensors = ctx.saved_tensors
    inputs = list(ctx.inputs)
    for i, tensor in zip(_TENSORS, tensors, strict=True):
        inputs[i] = tensor
    gradients: list[Tensor | None] = [None] * len(inputs)
    found = _ops.side_relu_attend_backward(g_z, rowsum, *inputs)
    for i, gradient in zip(_DIFFERENTIABLE, found, strict=True):
        gradients[i] = None if inputs[i] is None else gradient
    return tuple(gradients)


torch.library.register_autograd("pyext::side_relu_attend", _backward, setup_context=_setup)
refuse_double_backward("side_relu_attend_backward")
