"""Fake kernels and gradient formulas of `splat_project` and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._splat.refuse import refuse_double_backward

_ops = torch.ops.pyext


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


torch.library.register_autograd(
    "pyext::splat_project", _project_backward, setup_context=_project_setup
)
refuse_double_backward("splat_project_backward")
