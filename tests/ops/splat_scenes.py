"""Scenes for the tests of `rasterization`, as dictionaries of its keyword arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Scene = dict[str, Any]
Rasterization = Callable[..., tuple[Tensor, Tensor, dict[str, Any]]]

DIFFERENTIABLE = (
    "means", "quats", "scales", "covars", "opacities", "colors", "viewmats", "Ks",
    "backgrounds",
)  # fmt: skip


def cameras_around(generator: torch.Generator, *shape: int) -> Tensor:
    """World-to-camera matrices that look along z, each a little turned and moved."""
    small = 0.1 * torch.randn(*shape, 6, generator=generator, dtype=torch.float64)
    twist = torch.zeros(*shape, 4, 4, dtype=torch.float64)
    for k, (i, j) in enumerate(((0, 1), (1, 2), (2, 0))):
        twist[..., i, j], twist[..., j, i] = small[..., k], -small[..., k]
    twist[..., :3, 3] = small[..., 3:]
    return torch.linalg.matrix_exp(twist)


def random_scene(
    n: int,
    width: int,
    height: int,
    *,
    batch: tuple[int, ...] = (),
    cameras: int = 1,
    channels: int = 3,
    covars: bool = False,
    per_camera: bool = False,
    backgrounds: bool = True,
    opacity: tuple[float, float] = (0.1, 0.9),
    size: tuple[float, float] = (0.02, 0.4),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Scene:
    """Gaussians in front of cameras, some beyond the edges of the image.

    Numbers are drawn in float64, so both dtypes get the same scene up to rounding. `opacity` and
    `size` (standard deviations; the scene is about 2.5 away) are ranges.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    depth = uniform(1.5, 4.0, *batch, n, 1)
    focal = float(max(width, height, 8))
    intrinsics = torch.tensor(
        [[focal, 0, width / 2 + 0.7], [0, 1.1 * focal, height / 2 - 0.4], [0, 0, 1]],
        dtype=torch.float64,
    )
    log_size = torch.tensor(size, dtype=torch.float64).log().tolist()
    scales = uniform(*log_size, *batch, n, 3).exp()
    factor = uniform(-1, 1, *batch, n, 3, 3) * scales[..., None]
    tensors = {
        "means": torch.cat([uniform(-0.7, 0.7, *batch, n, 2) * depth, depth], -1),
        "quats": None if covars else uniform(-1, 1, *batch, n, 4),
        "scales": None if covars else scales,
        "opacities": uniform(*opacity, *batch, n),
        "colors": uniform(-1, 1, *batch, *((cameras,) if per_camera else ()), n, channels),
        "viewmats": cameras_around(generator, *batch, cameras),
        "Ks": intrinsics.repeat(*batch, cameras, 1, 1),
        "backgrounds": uniform(-1, 1, *batch, cameras, channels) if backgrounds else None,
        "covars": factor @ factor.mT + 1e-4 * torch.eye(3) if covars else None,
    }
    return {**cast(tensors, dtype), "width": width, "height": height, "packed": False}


def lone_gaussian(
    width: int = 33, height: int = 33, focal: float = 40.0, n: int = 1, **changes: Any
) -> Scene:
    """`n` equal white Gaussians on the axis of one camera, centred on the middle pixel."""
    return {
        "means": torch.tensor([[0.0, 0.0, 2.0]]).repeat(n, 1),
        "quats": torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(n, 1),
        "scales": torch.full((n, 3), 0.1),
        "opacities": torch.full((n,), 0.5),
        "colors": torch.ones(n, 1),
        "viewmats": torch.eye(4)[None],
        "Ks": torch.tensor(
            [[[focal, 0, width // 2 + 0.5], [0, focal, height // 2 + 0.5], [0, 0, 1]]]
        ),
        "packed": False,
        "width": width,
        "height": height,
        **changes,
    }


def map_tensors(scene: Scene, function: Callable[[Tensor], Tensor]) -> Scene:
    return {k: function(v) if isinstance(v, Tensor) else v for k, v in scene.items()}


def cast(scene: Scene, dtype: torch.dtype) -> Scene:
    return map_tensors(scene, lambda x: x.to(dtype))


class Run(NamedTuple):
    """A rendered scene, with the tensors to differentiate by."""

    colors: Tensor
    alphas: Tensor
    meta: dict[str, Any]
    leaves: dict[str, Tensor]

    def values(self) -> Tensor:
        """Colours and alpha side by side, [..., C, H, W, D + 1]."""
        return torch.cat([self.colors, self.alphas], -1)

    def gradients(self, weights: Tensor) -> dict[str, Tensor]:
        """Of <values, weights>, by argument; zero where an argument has no part in them."""
        loss = (self.values() * weights.to(self.colors.dtype)).sum()
        leaves = list(self.leaves.values())
        found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        return dict(zip(self.leaves, found, strict=True))


def run(rasterization: Rasterization, scene: Scene) -> Run:
    leaves = {
        name: scene[name].detach().requires_grad_()
        for name in DIFFERENTIABLE
        if scene.get(name) is not None
    }
    return Run(*rasterization(**{**scene, **leaves}), leaves)


def random_weights(values: Tensor, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(values.shape, generator=generator, dtype=torch.float64)


def near_cuts(meta: dict[str, Any]) -> Tensor:
    """Pixels [..., C, H, W] where float32 rounding may decide a threshold the other way.

    Composites all pairs of Gaussians and pixels, no tiles, from the projection in `meta`. A float32
    alpha is off by at most about 6e-5 of itself: a centre 1e-5 pixels off under the steepest
    exponent, 6 a pixel for a Gaussian that is all blur.
    """
    visible, alpha_max = (meta["radii"] > 0).all(-1), meta["footprints"].alpha_max
    order = torch.where(visible, meta["depths"], torch.inf).argsort(dim=-1, stable=True)
    x = torch.arange(meta["width"], dtype=torch.float64) + 0.5
    y = torch.arange(meta["height"], dtype=torch.float64)[:, None] + 0.5
    u, v = (z[..., None, None] for z in meta["means2d"].detach().unbind(-1))
    a, b, c = (z[..., None, None] for z in meta["conics"].detach().unbind(-1))
    dx, dy = u - x, v - y
    power = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    opacities = torch.where(visible, meta["opacities"].detach(), 0)[..., None, None]
    raw = (opacities * torch.exp(-power)).take_along_dim(order[..., None, None], -3)
    alpha = torch.where(raw >= 1 / 255, raw.clamp(max=alpha_max), 0)
    after = torch.cumprod(1 - alpha, -3)
    # An alpha off by some share of itself moves the share of T by alpha / (1 - alpha) times that.
    margin = torch.cumsum(1e-4 * alpha / (1 - alpha), -3)
    near = ((raw * 255 - 1).abs() < 1e-4) | ((raw - alpha_max).abs() < 1e-4)
    return (near | ((after * 1e4 - 1).abs() < margin)).any(-3)
