"""Fake kernels and gradient formulas of `splat_sh` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._refuse import refuse_double_backward

_ops = torch.ops.pyext


@torch.library.register_fake("pyext::splat_sh")
def _(degree, means, centres, coeffs, radii):  # type: ignore[no-untyped-def]
    return means.new_empty((*centres.shape[:2], means.shape[1], coeffs.shape[4]))


@torch.library.register_fake("pyext::splat_sh_backward")
def _(degree, means, centres, coeffs, radii, g_colours):  # type: ignore[no-untyped-def]
    return (
        means.new_empty(means.shape),
        means.new_empty(centres.shape),
        means.new_empty(coeffs.shape),
    )


def _sh_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.degree, *tensors = inputs
    ctx.save_for_backward(*tensors)


def _sh_backward(ctx: Any, g_colours: Tensor) -> tuple[Tensor | None, ...]:
    grads = _ops.splat_sh_backward(ctx.degree, *ctx.saved_tensors, g_colours)
    return None, *grads, None


torch.library.register_autograd("pyext::splat_sh", _sh_backward, setup_context=_sh_setup)
refuse_double_backward("splat_sh_backward")
