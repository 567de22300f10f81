"""Fake kernels and gradient formulas of `side_antired` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._refuse import refuse_double_backward
from pyext.ops._side.empty import like_activations, like_given
from pyext.ops._side.wide import wide

_ops = torch.ops.pyext


@torch.library.register_fake("pyext::side_antired")
def _(g, h, a, c, w, b, eps_l1, eps_l2, add_guide):  # type: ignore[no-untyped-def]
    batch, taps, tokens, d = h.shape
    beta = h.new_empty((batch, tokens, taps), dtype=wide(h))
    return g.new_empty((batch, tokens, d)), beta


@torch.library.register_fake("pyext::side_antired_backward")
def _(g_z, g, h, a, c, w, b, eps_l1, eps_l2, add_guide):  # type: ignore[no-untyped-def]
    affine = (like_given(a, h), like_given(c, h))
    gate = (w.new_empty(w.shape), b.new_empty(b.shape))
    return g.new_empty(g.shape), like_activations(h), *affine, *gate


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, eps_l1, eps_l2, add_guide = inputs
    ctx.save_for_backward(*tensors)
    ctx.constants = (eps_l1, eps_l2, add_guide)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, g_z: Tensor, _g_beta: Tensor | None) -> tuple[Tensor | None, ...]:
    _, _, a, c, _, _ = ctx.saved_tensors
    out = _ops.side_antired_backward(g_z, *ctx.saved_tensors, *ctx.constants)
    g_g, g_h, g_a, g_c, g_w, g_b = out
    affine = (None if a is None else g_a, None if c is None else g_c)
    return g_g, g_h, *affine, g_w, g_b, None, None, None


torch.library.register_autograd("pyext::side_antired", _backward, setup_context=_setup)
refuse_double_backward("side_antired_backward")
