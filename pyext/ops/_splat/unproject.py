"""Fake kernels and gradient formulas of the ops that bring pixels back to Gaussians."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ops = torch.ops.pyext


@torch.library.register_fake("pyext::splat_unproject")
def _(means2d, conics, opacities, values, *_rest):  # type: ignore[no-untyped-def]
    gaussians = (means2d.shape[0], means2d.shape[1])
    return (
        means2d.new_empty((*gaussians, values.shape[3])),
        means2d.new_empty(gaussians),
        means2d.new_empty(gaussians, dtype=torch.int32),
    )


def _matrix(like: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    nonzeros = torch.library.get_ctx().new_dynamic_size()
    return (
        like.new_empty((rows + 1,), dtype=torch.int64),
        like.new_empty((nonzeros,), dtype=torch.int64),
        like.new_empty((nonzeros,)),
    )


@torch.library.register_fake("pyext::splat_unproject_cells")
def _(means2d, *_rest):  # type: ignore[no-untyped-def]
    gaussians = (means2d.shape[0], means2d.shape[1])
    mass, hits = means2d.new_empty(gaussians), means2d.new_empty(gaussians, dtype=torch.int32)
    return *_matrix(means2d, means2d.shape[1]), mass, hits


@torch.library.register_fake("pyext::splat_render_cells")
def _(means2d, *rest):  # type: ignore[no-untyped-def]
    cell_height, cell_width = rest[-2:]
    return _matrix(means2d, means2d.shape[0] * cell_height * cell_width)


@torch.library.register_fake("pyext::splat_contributors")
def _(means2d, conics, opacities, a, b, c, d, e, width, height, alpha_max, k):  # type: ignore[no-untyped-def]
    image = (means2d.shape[0], height, width)
    return (
        means2d.new_empty((*image, k), dtype=torch.int32),
        means2d.new_empty((*image, k)),
        means2d.new_empty(image, dtype=torch.int32),
    )


def _unproject_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, width, height, alpha_max, count = inputs
    ctx.save_for_backward(*tensors)
    ctx.constants = (width, height, alpha_max)
    ctx.count = count
    ctx.mark_non_differentiable(output[2])


def _unproject_backward(
    ctx: Any, g_sum: Tensor, g_mass: Tensor, _g_hits: Tensor
) -> tuple[Tensor | None, ...]:
    """The weights are the compositor's, so its forward and backward are the two gradients.

    <sum, g_sum> + <mass, g_mass> is the inner product of the image that composites [g_sum, g_mass]
    with [values, 1].
    """
    if ctx.count:
        if ctx.needs_input_grad[3]:
            raise NotImplementedError(
                "values: unproject has no gradient in mode 'count'; detach them or use 'weight'"
            )
        return (None,) * 14
    means2d, conics, opacities, values, mask, *lists = ctx.saved_tensors
    features = torch.cat([g_sum, g_mass.unsqueeze(-1)], -1)
    drawn = (means2d, conics, opacities, features, *lists, *ctx.constants)
    out, transmittance, last = _ops.splat_composite(*drawn)
    image = torch.cat([values, torch.ones_like(out[..., :1])], -1)
    g_values = out[..., :-1]
    if mask is not None:
        image = torch.where(mask.unsqueeze(-1), image, 0)
        g_values = torch.where(mask.unsqueeze(-1), g_values, 0)
    shape: tuple[Tensor | None, ...] = (None, None, None)
    if any(ctx.needs_input_grad[:3]):
        shape = _ops.splat_composite_backward(
            *drawn, transmittance, last, image, torch.zeros_like(transmittance)
        )[:3]
    return *shape, g_values, *([None] * 10)


torch.library.register_autograd(
    "pyext::splat_unproject", _unproject_backward, setup_context=_unproject_setup
)
