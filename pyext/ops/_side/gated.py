"""Fake kernels and gradient formulas of `side_project_gated` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._refuse import refuse_double_backward
from pyext.ops._side.empty import like_activations
from pyext.ops._side.project import empty_h

_ops = torch.ops.pyext


@torch.library.register_fake("pyext::side_project_gated")
def _(x, w1, b1, w2, b2, w3, b3, layout):  # type: ignore[no-untyped-def]
    shape = (x[0], len(x), w1[0].shape[0], layout, False)
    return empty_h(*shape), empty_h(*shape)


@torch.library.register_fake("pyext::side_gated_features")
def _(hid, w2, b2, w3, b3):  # type: ignore[no-untyped-def]
    batch, taps, tokens, d = hid.shape
    dtype = torch.float32 if hid.dtype == torch.float16 else hid.dtype
    values, gates = (hid.new_empty((taps, batch * tokens, d), dtype=dtype) for _ in range(2))
    return like_activations(hid), values, gates


@torch.library.register_fake("pyext::side_project_gated_backward")
def _(x, w1, b1, w2, b2, w3, b3, hid, values, gates, g_f, need_x):  # type: ignore[no-untyped-def]
    g_x = [x.new_empty(x.shape if need else (0,)) for x, need in zip(x, need_x, strict=True)]
    return g_x, *([t.new_empty(t.shape) for t in tensors] for tensors in (w1, b1, w2, b2, w3, b3))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *lists, _layout = inputs
    ctx.taps = len(lists[0])
    ctx.save_for_backward(*(tensor for tensors in lists for tensor in tensors), output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, g_f: Tensor, _g_hid: Tensor) -> tuple[Any, ...]:
    *flat, hid = ctx.saved_tensors
    lists = [flat[i * ctx.taps : (i + 1) * ctx.taps] for i in range(7)]
    need_x = list(ctx.needs_input_grad[0])
    g_x, *rest = _ops.side_project_gated_backward(*lists, hid, None, None, g_f, need_x)
    return [g if need else None for g, need in zip(g_x, need_x, strict=True)], *rest, None


torch.library.register_autograd("pyext::side_project_gated", _backward, setup_context=_setup)
refuse_double_backward("side_project_gated_backward")
