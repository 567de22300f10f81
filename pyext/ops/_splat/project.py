"""Fake kernels and gradient formulas of `splat_project` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._refuse import refuse_double_backward

_ops = torch.ops.pyext


@torch.library.register_fake("pyext::splat_project")
def _(means, covars, quats, scales, opacities, viewmats, Ks, *constants):  # type: ignore[no-untyped-def]
    compensate = constants[-2]
    images = (means.shape[0], viewmats.shape[1], means.shape[1])
    return (
        means.new_empty((*images, 2), dtype=torch.int32),
        means.new_empty((*images, 2)),
        means.new_empty(images),
        means.new_empty((*images, 3)),
        means.new_empty(images if compensate else (*images[:2], 0)),
    )


@torch.library.register_fake("pyext::splat_project_backward")
def _(means, covars, quats, scales, viewmats, Ks, *_rest):  # type: ignore[no-untyped-def]
    B, N = means.shape[0], means.shape[1]
    given = covars is not None
    return (
        means.new_empty((B, N, 3)),
        means.new_empty((B, N if given else 0, 6)),
        means.new_empty((B, 0 if given else N, 4)),
        means.new_empty((B, 0 if given else N, 3)),
        means.new_empty(viewmats.shape),
        means.new_empty(Ks.shape),
    )


def _project_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    means, covars, quats, scales, _opacities, viewmats, Ks, width, height, eps2d = inputs[:10]
    ortho, _circle, compensate, rho_min = inputs[13:]
    ctx.save_for_backward(means, covars, quats, scales, viewmats, Ks, output[0])
    ctx.constants = (width, height, eps2d, ortho, compensate, rho_min)
    ctx.mark_non_differentiable(output[0])


def _project_backward(ctx: Any, _g_radii: Tensor, *upstream: Tensor) -> tuple[Tensor | None, ...]:
    means, covars, quats, scales, viewmats, Ks, radii = ctx.saved_tensors
    grads = _ops.splat_project_backward(
        means, covars, quats, scales, viewmats, Ks, *ctx.constants, radii, *upstream
    )
    g_means, g_covars, g_quats, g_scales, g_viewmats, g_Ks = grads
    shape = (g_covars, None, None) if covars is not None else (None, g_quats, g_scales)
    # Opacity sets only the extent, an integer; ten constants follow.
    return g_means, *shape, None, g_viewmats, g_Ks, *([None] * 10)


torch.library.register_autograd(
    "pyext::splat_project", _project_backward, setup_context=_project_setup
)
refuse_double_backward("splat_project_backward")
