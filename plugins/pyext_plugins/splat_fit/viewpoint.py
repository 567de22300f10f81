"""Where to look at a scene from, when its file does not say."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyext.errors import UserError
from pyext.scene import Scene

OPAQUE = 0.1  # opacity; fainter Gaussians say little about where a scene is
SHARE = 0.8  # of the Gaussians, which the default view takes in; the others are surroundings
SIGMAS = 3.0  # standard deviations, as far as a Gaussian can be seen
ELEVATION = 25.0  # degrees of the default eye above the centre


def bounds(scene: Scene) -> tuple[Tensor, float]:
    """Centre [3] and radius of the ball that holds most of the Gaussians one can see.

    The centre is the median along each axis: far away strays do not move it.

    Raises:
        UserError: there is nothing to look at.
    """
    seen = (scene.opacities.sigmoid() > OPAQUE) & scene.means.isfinite().all(1)
    if not seen.any():
        raise UserError("SCENE: expected Gaussians that can be seen, there are none")
    means, sizes = scene.means[seen], scene.scales[seen].exp().amax(1)
    centre = means.median(0).values
    reach = ((means - centre).norm(dim=1) + SIGMAS * sizes).sort().values
    return centre, float(reach[int(SHARE * len(reach))]) or 1.0


def default_eye(centre: Tensor, radius: float, up: Tensor, fov: float) -> Tensor:
    """A place [3] somewhat above ``centre`` from which ``fov`` degrees take in the ball."""
    up = up / up.norm()
    axis = torch.eye(3)[up.abs().argmin()]  # the axis farthest from up
    ahead = torch.linalg.cross(up, axis)
    ahead = ahead / ahead.norm()
    height = math.radians(ELEVATION)
    distance = radius / math.sin(math.radians(fov) / 2)
    return centre + distance * (math.cos(height) * ahead + math.sin(height) * up)


def turntable(eye: Tensor, target: Tensor, up: Tensor, frames: int) -> Iterator[Tensor]:
    """The places [3] of an eye that goes once around ``target`` about the axis ``up``."""
    up = up / up.norm()
    arm = eye - target
    along = (arm @ up) * up
    across = arm - along
    for frame in range(frames):
        angle = 2 * math.pi * frame / frames
        turned = math.cos(angle) * across + math.sin(angle) * torch.linalg.cross(up, across)
        yield target + along + turned
