"""Fake kernels and gradient formulas of `splat_composite` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._refuse import refuse_double_backward

_ops = torch.ops.pyext


@torch.library.register_fake("pyext::splat_composite")
def _(means2d, conics, opacities, features, a, b, c, d, e, width, height, *_rest):  # type: ignore[no-untyped-def]
    image = (means2d.shape[0], height, width)
    return (
        means2d.new_empty((*image, features.shape[2])),
        means2d.new_empty(image),
        means2d.new_empty(image, dtype=torch.int32),
    )


@torch.library.register_fake("pyext::splat_composite_backward")
def _(means2d, conics, opacities, features, *rest):  # type: ignore[no-untyped-def]
    images, N = opacities.shape
    absgrad = len(rest) > 12 and rest[12]  # five lists, three constants, four tensors before it
    return (
        means2d.new_empty((images, N, 2)),
        means2d.new_empty((images, N, 3)),
        means2d.new_empty((images, N)),
        means2d.new_empty(features.shape),
        means2d.new_empty((images, N if absgrad else 0, 2)),
    )


def _composite_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, width, height, alpha_max, absolute = inputs
    _out, transmittance, last = output
    ctx.save_for_backward(*tensors, transmittance, last)
    ctx.constants = (width, height, alpha_max)
    ctx.absgrad = absolute is not None
    ctx.mark_non_differentiable(last)


def _composite_backward(
    ctx: Any, g_out: Tensor, g_transmittance: Tensor, _g_last: Tensor
) -> tuple[Tensor | None, ...]:
    *tensors, transmittance, last = ctx.saved_tensors
    *grads, g_absolute = _ops.splat_composite_backward(
        *tensors, *ctx.constants, transmittance, last, g_out, g_transmittance, ctx.absgrad
    )
    # The five lists and three constants have no gradient; `absolute` stands for the absolute one.
    return *grads, *([None] * 8), g_absolute if ctx.absgrad else None


torch.library.register_autograd(
    "pyext::splat_composite", _composite_backward, setup_context=_composite_setup
)
refuse_double_backward("splat_composite_backward")
