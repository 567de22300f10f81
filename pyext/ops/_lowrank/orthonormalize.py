"""Fake kernels and gradient formula of `lowrank_orthonormalize`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._refuse import refuse_double_backward

_ops = torch.ops.pyext


@torch.library.register_fake("pyext::lowrank_orthonormalize")
def _(X):  # type: ignore[no-untyped-def]
    return X.new_empty(X.shape), X.new_empty((*X.shape[:-1], X.shape[-2]))


@torch.library.register_fake("pyext::lowrank_orthonormalize_backward")
def _(g, R, L):  # type: ignore[no-untyped-def]
    return R.new_empty(R.shape)


def _setup(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    R, L = output
    ctx.save_for_backward(R, L)
    ctx.mark_non_differentiable(L)


def _backward(ctx: Any, g_R: Tensor, _g_L: Tensor) -> Tensor:
    g_X: Tensor = _ops.lowrank_orthonormalize_backward(g_R, *ctx.saved_tensors)
    return g_X


torch.library.register_autograd("pyext::lowrank_orthonormalize", _backward, setup_context=_setup)
refuse_double_backward("lowrank_orthonormalize_backward")
