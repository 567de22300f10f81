"""Fake kernels and autograd formulas of the ``splat_*`` ops.

Double backward raises: the backward ops have a formula that says so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ops = torch.ops.pyext
_TILE = 16


@torch.library.register_fake("pyext::splat_project")
def _(means, covars, quats, scales, opacities, viewmats, Ks, *_constants):  # type: ignore[no-untyped-def]
    images = (means.shape[0], viewmats.shape[1], means.shape[1])
    return (
        means.new_empty((*images, 2), dtype=torch.int32),
        means.new_empty((*images, 2)),
        means.new_empty(images),
        means.new_empty((*images, 3)),
    )


@torch.library.register_fake("pyext::splat_project_backward")
def _(means, covars, quats, scales, viewmats, *_rest):  # type: ignore[no-untyped-def]
    B, N = means.shape[0], means.shape[1]
    given = covars is not None
    return (
        means.new_empty((B, N, 3)),
        means.new_empty((B, N if given else 0, 6)),
        means.new_empty((B, 0 if given else N, 4)),
        means.new_empty((B, 0 if given else N, 3)),
        means.new_empty(viewmats.shape),
    )


@torch.library.register_fake("pyext::splat_bin")
def _(means2d, radii, depths, conics, opacities, width, height):  # type: ignore[no-untyped-def]
    images, N = means2d.shape[0], means2d.shape[1]
    tiles = images * (-(-width // _TILE)) * (-(-height // _TILE))
    entries = torch.library.get_ctx().new_dynamic_size()
    return (
        means2d.new_empty((tiles + 1,), dtype=torch.int64),
        means2d.new_empty((entries,), dtype=torch.int32),
        means2d.new_empty((images * N,), dtype=torch.int32),
        means2d.new_empty((images * N + 1,), dtype=torch.int64),
        means2d.new_empty((entries,), dtype=torch.int32),
    )


@torch.library.register_fake("pyext::splat_composite")
def _(means2d, conics, opacities, features, a, b, c, d, e, width, height, alpha_max):  # type: ignore[no-untyped-def]
    image = (means2d.shape[0], height, width)
    return (
        means2d.new_empty((*image, features.shape[2])),
        means2d.new_empty(image),
        means2d.new_empty(image, dtype=torch.int32),
    )


@torch.library.register_fake("pyext::splat_composite_backward")
def _(means2d, conics, opacities, features, *_rest):  # type: ignore[no-untyped-def]
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (means2d, conics, opacities, features)
    )


def _project_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    means, covars, quats, scales, _opacities, viewmats, Ks, width, height, eps2d = inputs[:10]
    ctx.save_for_backward(means, covars, quats, scales, viewmats, Ks, output[0])
    ctx.constants = (width, height, eps2d)
    ctx.mark_non_differentiable(output[0])


def _project_backward(
    ctx: Any, _g_radii: Tensor, g_means2d: Tensor, g_depths: Tensor, g_conics: Tensor
) -> tuple[Tensor | None, ...]:
    means, covars, quats, scales, viewmats, Ks, radii = ctx.saved_tensors
    grads = _ops.splat_project_backward(
        means, covars, quats, scales, viewmats, Ks, *ctx.constants, radii, g_means2d, g_depths,
        g_conics,
    )  # fmt: skip
    g_means, g_covars, g_quats, g_scales, g_viewmats = grads
    shape = (g_covars, None, None) if covars is not None else (None, g_quats, g_scales)
    # Opacity sets only the extent, an integer; Ks gets no gradient; six constants follow.
    return g_means, *shape, None, g_viewmats, None, *([None] * 6)


def _composite_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, width, height, alpha_max = inputs
    _out, transmittance, last = output
    ctx.save_for_backward(*tensors, transmittance, last)
    ctx.constants = (width, height, alpha_max)
    ctx.mark_non_differentiable(last)


def _composite_backward(
    ctx: Any, g_out: Tensor, g_transmittance: Tensor, _g_last: Tensor
) -> tuple[Tensor | None, ...]:
    *tensors, transmittance, last = ctx.saved_tensors
    grads = _ops.splat_composite_backward(
        *tensors, *ctx.constants, transmittance, last, g_out, g_transmittance
    )
    return *grads, *([None] * 8)


def _refuse(ctx: Any, *_gradients: Tensor) -> None:
    raise NotImplementedError("rasterization: second derivatives are not supported")


torch.library.register_autograd(
    "pyext::splat_project", _project_backward, setup_context=_project_setup
)
torch.library.register_autograd(
    "pyext::splat_composite", _composite_backward, setup_context=_composite_setup
)
for _name in ("splat_project_backward", "splat_composite_backward"):
    torch.library.register_autograd(f"pyext::{_name}", _refuse)
