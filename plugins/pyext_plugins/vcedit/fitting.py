"""Fitting a scene to pictures of it: the colours alone in closed form, or all of it by Adam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyext.ops.splat import rasterization, unproject
from pyext.scene import Scene
from pyext.scene.gaussians import SH_C0
from pyext_plugins.vcedit.cameras import Cameras
from pyext_plugins.vcedit.lifting import check_finite, geometry, tile_lists

RIDGE = 0.01  # pixels: the pull of the colours a Gaussian has, against those it is seen with
ITERATIONS = 10  # of conjugate gradients

# Step sizes of Adam and weights of the loss in VcEdit's published code. `means` is in units of the
# cameras' extent.
STEP_SIZES = {
    "means": 1.6e-4,
    "scales": 0.005,
    "quats": 0.001,
    "opacities": 0.05,
    "sh0": 0.0125,
    "shN": 0.0125 / 20,
}
L1_WEIGHT = 10.0
ANCHORED = ("means", "scales", "quats", "opacities")
ANCHOR_WEIGHT = 50 * 0.05  # the weight of a field, times that of Gaussians never densified


def render(scene: Scene, cameras: Cameras) -> Tensor:
    """Pictures of all views on black, not clipped, [V, H, W, 3]."""
    return rasterization(**scene.arguments(), **cameras.arguments())[0]


def fit_colors(
    scene: Scene,
    cameras: Cameras,
    images: Tensor,
    *,
    ridge: float = RIDGE,
    iterations: int = ITERATIONS,
) -> Scene:
    """Change the constant colours so that the renders come closest to the pictures.

    With A the renderer, linear in colours, and r what the renders of now lack, the change d
    minimises |A d - r|^2 + ridge |d|^2 over all views at once. Conjugate gradients solve it:
    A is a rasterization, its adjoint an `unproject`. Geometry and view-dependent colour stay.

    Args:
        scene: N Gaussians, is not changed.
        cameras: V views.
        images: in [0, 1], [V, H, W, 3].
        ridge: in units of pixels.
        iterations: at most, of conjugate gradients; preconditioned by each Gaussian's mass.

    Raises:
        ValueError: the pictures do not fit the cameras, or hold not-a-number.
    """
    check_images(images, cameras)
    with torch.no_grad():
        meta = tile_lists(cameras, scene)
        shape = geometry(scene)

        def lifted(pictures: Tensor) -> Tensor:
            return unproject(pictures, meta, mode="weight", normalize=None)[0]

        def normal(d: Tensor) -> Tensor:
            return lifted(rasterization(**shape, colors=d, **cameras.arguments())[0]) + ridge * d

        missing = images - render(scene, cameras)
        mass = unproject(missing, meta, mode="weight", normalize=None)[1]
        change = _conjugate_gradients(normal, lifted(missing), 1 / (mass + ridge), iterations)
        return replace(scene, sh0=scene.sh0 + change[:, None] / SH_C0)


def _conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], right: Tensor, inverse: Tensor, iterations: int
) -> Tensor:
    """Solve for each column of [N, D] by itself; ``inverse`` [N] is the preconditioner."""
    x, residual = torch.zeros_like(right), right
    scaled = inverse[:, None] * residual
    direction, energy = scaled, (residual * scaled).sum(0)
    for _ in range(iterations):
        if not (energy > 0).any():
            break
        image = matrix(direction)
        # A column that is solved has no energy left and no direction to go.
        curvature = (direction * image).sum(0)
        step = torch.where(curvature > 0, energy / curvature, 0)
        x, residual = x + step * direction, residual - step * image
        scaled = inverse[:, None] * residual
        before, energy = energy, (residual * scaled).sum(0)
        direction = scaled + torch.where(before > 0, energy / before, 0) * direction
    return x


class SceneFit:
    """A copy of a scene being fitted to pictures, one view per step.

    Loss: 10 L1, ``perceptual`` if given, and mean squared distances of geometry and opacity from
    where they began. Views come in shuffled rounds; step sizes are halved after each third. The
    number of Gaussians stays: VcEdit's densification is not part of this.

    Args:
        scene: N Gaussians, is not changed.
        cameras: V views.
        images: in [0, 1], [V, H, W, 3].
        steps: of Adam.
        seed: of the order of views.
        editable: bool [N], which Gaussians may change; all when None.
        perceptual: adds a loss of picture and target, [H, W, 3] each, where VcEdit has 10 LPIPS.

    Raises:
        ValueError: the pictures do not fit the cameras, or hold not-a-number.
    """

    def __init__(
        self,
        scene: Scene,
        cameras: Cameras,
        images: Tensor,
        *,
        steps: int,
        seed: int = 0,
        editable: Tensor | None = None,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        check_images(images, cameras)
        if editable is not None and tuple(editable.shape) != (len(scene),):
            raise ValueError(f"editable: expected shape [{len(scene)}], got {list(editable.shape)}")
        self.step, self.steps = 0, steps
        self._cameras, self._images, self._perceptual = cameras, images, perceptual
        self._start, self._editable = scene, editable
        self._parameters = {
            name: getattr(scene, name).detach().clone().requires_grad_() for name in STEP_SIZES
        }
        self._units = {"means": cameras.extent or 1.0}
        self._optimizer = torch.optim.Adam(
            [{"params": [value], "name": name} for name, value in self._parameters.items()],
            eps=1e-15,
        )
        generator = torch.Generator().manual_seed(seed)
        rounds = -(-steps // len(cameras))
        shuffled = [torch.randperm(len(cameras), generator=generator) for _ in range(rounds)]
        self._order = torch.cat(shuffled).tolist() if shuffled else []

    @property
    def scene(self) -> Scene:
        """The Gaussians as they are now."""
        return Scene(**{name: value.detach().clone() for name, value in self._parameters.items()})

    def advance(self) -> float:
        """Take one step; return the loss before it."""
        view = self._order[self.step]
        decay = 0.5 ** (3 * self.step // self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = STEP_SIZES[group["name"]] * self._units.get(group["name"], 1.0) * decay
        self._optimizer.zero_grad()
        with torch.enable_grad():
            loss = self._loss(view)
            torch.autograd.backward(loss)
        if self._editable is not None:
            for value in self._parameters.values():
                if value.grad is not None:
                    value.grad[~self._editable] = 0
        self._optimizer.step()
        self.step += 1
        return float(loss.detach())

    def _loss(self, view: int) -> Tensor:
        target = self._images[view]
        picture = render(Scene(**self._parameters), self._cameras[view : view + 1])[0]
        loss = L1_WEIGHT * (picture - target).abs().mean()
        if self._perceptual is not None:
            loss = loss + self._perceptual(picture, target)
        for name in ANCHORED:
            moved = self._parameters[name] - getattr(self._start, name)
            loss = loss + ANCHOR_WEIGHT * moved.square().mean()
        return loss


def fit_scene(
    scene: Scene, cameras: Cameras, images: Tensor, *, epochs: int = 6, **options: Any
) -> Scene:
    """Fit a copy of the whole scene, each view once per epoch; ``options`` are `SceneFit`'s."""
    fit = SceneFit(scene, cameras, images, steps=epochs * len(cameras), **options)
    while fit.step < fit.steps:
        fit.advance()
    return fit.scene


def check_images(images: Tensor, cameras: Cameras) -> None:
    """Raises ValueError unless images are finite and [V, H, W, 3]."""
    wanted = [len(cameras), cameras.height, cameras.width, 3]
    if list(images.shape) != wanted:
        raise ValueError(f"images: expected shape {wanted}, got {list(images.shape)}")
    check_finite("images", images)
