"""Steps of `rasterization` between its stages: shapes in, colours, blending."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Stages(NamedTuple):
    """One implementation of the family: functions with the signatures of the torch ops."""

    project: Callable[..., Any]  # pyext::splat_project
    sh: Callable[..., Any]  # pyext::splat_sh
    bin: Callable[..., Any]  # pyext::splat_bin
    composite: Callable[..., Any]  # pyext::splat_composite


def no_colors(*_arguments: Any) -> Tensor:
    """Takes the place of `Stages.sh` where nothing is drawn."""
    raise AssertionError("no colours are evaluated here")


class Shape(NamedTuple):
    """Sizes of one call: batch dimensions and their product, cameras, Gaussians."""

    batch: tuple[int, ...]
    B: int
    C: int
    N: int

    @property
    def images(self) -> int:
        return self.B * self.C


def rotation_matrix(quats: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of unit quaternions (w, x, y, z) [..., 4]."""
    w, x, y, z = quats.unbind(-1)
    return torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        dim=-1,
    ).reshape(*quats.shape[:-1], 3, 3)  # fmt: skip


def upper_triangle(matrices: Tensor) -> Tensor:
    """[..., 3, 3] to its entries 00 01 02 11 12 22, [..., 6]."""
    rows, columns = torch.triu_indices(3, 3, device=matrices.device).unbind()
    return matrices[..., rows, columns]


def camera_centres(viewmats: Tensor) -> Tensor:
    """Camera positions in world coordinates of world-to-camera matrices, [..., C, 3]."""
    inverse, _ = torch.linalg.inv_ex(viewmats[..., :3, :3])
    return -(inverse @ viewmats[..., :3, 3:]).squeeze(-1)


def sh_colors(
    sh: Callable[..., Any],
    degree: int,
    means: Tensor,
    viewmats: Tensor,
    coefficients: Tensor,
    radii: Tensor,
    shape: Shape,
) -> Tensor:
    """Colours [I, N, D] of spherical-harmonic coefficients: max(0, sum + 0.5), as gsplat has it."""
    B, C, N = shape[1:]
    K, D = coefficients.shape[-2:]
    if coefficients.dim() == means.dim() + 2:  # per camera
        coefficients = coefficients.reshape(B, C, N, K, D)
    elif coefficients.dim() == 3:  # shared by the whole batch
        coefficients = coefficients.expand(B, N, K, D).unsqueeze(1)
    else:
        coefficients = coefficients.reshape(B, 1, N, K, D)
    centres = camera_centres(viewmats.reshape(B, C, 4, 4))
    raw = sh(degree, means.reshape(B, N, 3), centres, coefficients, radii.reshape(B, C, N, 2))
    return (raw + 0.5).clamp_min(0).reshape(shape.images, N, D)


def plain_colors(colors: Tensor, means: Tensor, shape: Shape) -> Tensor:
    """Features [I, N, D] of colors [..., N, D] or [..., C, N, D]."""
    if colors.dim() == means.dim():
        colors = colors.unsqueeze(-3).expand(*shape.batch, shape.C, shape.N, colors.shape[-1])
    return colors.reshape(shape.images, shape.N, colors.shape[-1])


def with_depth(features: Tensor, depths: Tensor, render_mode: str) -> Tensor:
    """The channels that are composited in a render mode, [I, N, X]."""
    if render_mode == "RGB":
        return features
    if render_mode in ("D", "ED"):
        return depths.unsqueeze(-1)
    return torch.cat([features, depths.unsqueeze(-1)], -1)


def finish(
    out: Tensor, transmittance: Tensor, backgrounds: Tensor | None, render_mode: str
) -> Tensor:
    """Background behind the colours, and expected depth instead of its sum, [I, H, W, X].

    Args:
        out: composited channels, [I, H, W, X].
        transmittance: [I, H, W].
        backgrounds: [I, D], behind the colours only; depth has none.
    """
    if backgrounds is not None and render_mode not in ("D", "ED"):
        if render_mode != "RGB":
            backgrounds = torch.nn.functional.pad(backgrounds, (0, 1))
        out = torch.addcmul(out, transmittance.unsqueeze(-1), backgrounds[:, None, None])
    if render_mode.endswith("ED"):
        alpha = (1 - transmittance).clamp_min(1e-10).unsqueeze(-1)
        out = torch.cat([out[..., :-1], out[..., -1:] / alpha], -1)
    return out


class _SparseGradient(torch.autograd.Function):
    """The identity, whose gradient keeps the rows of the Gaussians that some camera sees."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, seen: list[Tensor]) -> Tensor:
        ctx.seen = seen
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (ids,) = ctx.seen
        sparse = torch.sparse_coo_tensor(
            ids[None], gradient[ids], gradient.shape, is_coalesced=True, check_invariants=False
        )
        return sparse, None


def with_sparse_gradient(values: Tensor, seen: list[Tensor]) -> Tensor:
    """`values` [N, k] with a COO gradient; ``seen`` holds its rows once they are known."""
    result: Tensor = _SparseGradient.apply(values, seen)
    return result
