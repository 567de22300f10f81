"""Pinhole cameras: where they stand, where they look, what they render.

Camera axes are x right, y down, z forward; pixel (j, i) has its centre at (j + 0.5, i + 0.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyext.errors import UserError
from pyext.ops.splat import rasterization
from pyext.scene import Scene


@dataclass(frozen=True, eq=False)
class Camera:
    """One pinhole camera.

    Args:
        viewmat: world to camera, float32 [4, 4].
        K: intrinsics in pixels, float32 [3, 3].
        width, height: of the picture, in pixels.
    """

    viewmat: Tensor
    K: Tensor
    width: int
    height: int

    @property
    def position(self) -> Tensor:
        """In the world, [3]."""
        return -self.viewmat[:3, :3].T @ self.viewmat[:3, 3]

    @property
    def forward(self) -> Tensor:
        """The viewing direction in the world, [3]."""
        return self.viewmat[2, :3]

    def resized(self, width: int, height: int) -> Camera:
        """The same view in another number of pixels."""
        factors = torch.tensor([[width / self.width], [height / self.height], [1.0]])
        return Camera(self.viewmat, self.K * factors, width, height)


def intrinsics(fx: float, fy: float, cx: float, cy: float) -> Tensor:
    """The matrix K, [3, 3]."""
    return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float32)


def look_at(eye: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """The world-to-camera matrix [4, 4] of a camera at ``eye`` [3] that looks at ``target`` [3].

    Raises:
        UserError: the two are the same point, or ``up`` is along the line between them.
    """
    forward = target - eye
    right = torch.linalg.cross(forward, up)
    if not float(right.norm()) > 1e-6 * float(forward.norm() * up.norm()):
        raise UserError(
            f"--look-at: expected a point other than the eye and not straight along --up from it, "
            f"got {target.tolist()} from {eye.tolist()} with up {up.tolist()}"
        )
    forward, right = forward / forward.norm(), right / right.norm()
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    viewmat = torch.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = rotation, -rotation @ eye
    return viewmat


def focal_length(fov: float, side: int) -> float:
    """In pixels, of a camera that sees ``fov`` degrees across ``side`` pixels."""
    return side / 2 / math.tan(math.radians(fov) / 2)


def field_of_view(focal: float, side: int) -> float:
    """In degrees, across ``side`` pixels of a camera with ``focal`` length in pixels."""
    return math.degrees(2 * math.atan(side / 2 / focal))


def render(
    scene: Scene, camera: Camera, background: Tensor, **options: Any
) -> tuple[Tensor, dict[str, Any]]:
    """The picture [H, W, 3], not clipped, and the ``meta`` of `rasterization`.

    Args:
        scene: N Gaussians.
        camera: what looks at them.
        background: the colour behind them, [3].
        options: further arguments of `rasterization`.
    """
    colors, _, meta = rasterization(
        **{**scene.arguments(), **options},
        viewmats=camera.viewmat[None],
        Ks=camera.K[None],
        width=camera.width,
        height=camera.height,
        backgrounds=background[None],
        packed=False,
    )
    return colors[0], meta
