"""Fake kernels and gradient formulas of `side_confidence` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._refuse import refuse_double_backward
from pyext.ops._side.empty import like_given

_ops = torch.ops.pyext


@torch.library.register_fake("pyext::side_confidence")
def _(pool_q, pool, a, c, w, b):  # type: ignore[no-untyped-def]
    return pool.new_empty(pool.shape[:2])


@torch.library.register_fake("pyext::side_confidence_backward")
def _(g_alpha, alpha, pool_q, pool, a, c, w, b):  # type: ignore[no-untyped-def]
    means = (pool_q.new_empty(pool_q.shape), pool.new_empty(pool.shape))
    return *means, like_given(a, pool), like_given(c, pool), w.new_empty(w.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output, *inputs)


def _backward(ctx: Any, g_alpha: Tensor) -> tuple[Tensor | None, ...]:
    _, _, _, a, c, _, b = ctx.saved_tensors
    *means, g_a, g_c, g_w = _ops.side_confidence_backward(g_alpha, *ctx.saved_tensors)
    affine = (None if a is None else g_a, None if c is None else g_c)
    # A softmax does not see a shift.
    return *means, *affine, g_w, torch.zeros_like(b)


torch.library.register_autograd("pyext::side_confidence", _backward, setup_context=_setup)
refuse_double_backward("side_confidence_backward")
