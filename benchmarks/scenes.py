"""Generated Gaussian-splat scenes: clouds on surfaces, the same for the same seed.

`surfaces`: points uniform on a ground plane, a back wall and three spheres; each Gaussian lies flat
in its surface at a random angle and is about as wide as the distance to its neighbours, so that the
surfaces are closed. One in a hundred is a faint, large one whose footprint (the ellipse where a
splat still counts, 3.33 sigma) covers about a quarter of the image.

`garden`: what gsplat's own benchmark makes of a photographed garden's points, on points of our own.
Scales U(0, 0.02) times a factor, opacities U(0, 1), any rotation; points within 0.02 of a round
table, of the ground around it, and of a hedge behind; the camera close to the table, 648 x 420 at a
focal length of 480.6. With 111,785 points some 78,000 are visible, in 439,000 entries of tile lists
and 13 million contributions to pixels, where the original has 71,000, 353,000 and 12.9 million.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SPHERES = ((-1.6, 0.2, 5.0, 0.8), (0.1, -0.1, 6.0, 1.1), (1.7, 0.4, 4.5, 0.6))  # x, y, z, radius
GROUND_Y, WALL_Z, HALF_WIDTH, WALL_TOP, NEAREST = 1.0, 8.0, 6.0, -5.5, 1.2
SHARES = (0.4, 0.3, 0.3)  # of the points: ground, wall, spheres
LARGE_SHARE, LARGE_COVER = 0.01, 0.25  # of the Gaussians, of the image
EXTENT = 3.33  # sigmas to where gsplat cuts a footprint


@dataclass(frozen=True)
class Scene:
    """Arguments of ``rasterization``: N Gaussians, one camera, three colours; float32, CPU."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    viewmats: Tensor
    Ks: Tensor
    width: int
    height: int


def surfaces(gaussians: int, width: int, height: int, seed: int = 0) -> Scene:
    """A scene by the procedure above.

    Args:
        gaussians: their number N, at least 1.
        width, height: of the image in pixels.
        seed: of the generator.

    Raises:
        ValueError: a count or size is below 1.
    """
    _check_sizes(gaussians, width, height)
    generator = torch.Generator().manual_seed(seed)
    means, normals, spacing = _points(gaussians, generator)
    focal = 0.8 * width
    angle = torch.rand(gaussians, generator=generator) * 2 * math.pi
    scales = spacing[:, None] * (0.3 + torch.rand(gaussians, 3, generator=generator))
    opacities = 0.1 + 0.85 * torch.rand(gaussians, generator=generator)

    large = torch.rand(gaussians, generator=generator) < LARGE_SHARE
    pixels = math.sqrt(LARGE_COVER * width * height / math.pi) / EXTENT
    scales = torch.where(large[:, None], pixels / focal * means[:, 2:], scales)
    opacities = torch.where(large, 0.2 * opacities, opacities)
    flat = torch.tensor([1.0, 1.0, 0.1])

    return Scene(
        means=means,
        quats=_facing(normals, angle),
        # Large ones stay round: flat on the ground they would be slivers, not a quarter of it.
        scales=torch.where(large[:, None], scales, scales * flat),
        opacities=opacities,
        colors=torch.rand(gaussians, 3, generator=generator),
        viewmats=_camera(),
        Ks=torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]]),
        width=width,
        height=height,
    )


def garden(gaussians: int, width: int, height: int, footprint: float = 1.0, seed: int = 0) -> Scene:
    """A scene by the procedure above; ``footprint`` is the factor of the scales.

    Raises:
        ValueError: a count or size is below 1.
    """
    _check_sizes(gaussians, width, height)
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(gaussians, *shape, generator=generator)

    angle, radius, around = 2 * math.pi * uniform(), uniform().sqrt(), 2 * math.pi * uniform()
    x, z = radius * angle.cos(), radius * angle.sin()
    ground = torch.stack([2 * x, torch.full_like(x, 0.7), 2 * z], -1)
    table = torch.stack([0.8 * x, torch.zeros_like(x), 0.8 * z], -1)
    hedge = torch.stack([2 * around.cos(), 0.7 - 1.5 * uniform(), 2 * around.sin()], -1)
    kind = torch.multinomial(
        torch.tensor([0.25, 0.55, 0.2]), gaussians, replacement=True, generator=generator
    )
    means = torch.stack([ground, table, hedge])[kind, torch.arange(gaussians)]
    focal = 480.6 * width / 648
    return Scene(
        means=means + 0.02 * torch.randn(gaussians, 3, generator=generator),
        quats=torch.randn(gaussians, 4, generator=generator),
        scales=0.02 * footprint * uniform(3),
        opacities=uniform(),
        colors=uniform(3),
        viewmats=_looking_down(torch.tensor([0.0, -0.5, -1.2])),
        Ks=torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]]),
        width=width,
        height=height,
    )


def _check_sizes(gaussians: int, width: int, height: int) -> None:
    for name, value in (("gaussians", gaussians), ("width", width), ("height", height)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _looking_down(eye: Tensor) -> Tensor:
    """A world-to-camera matrix [1, 4, 4] at `eye`, in front of the origin and looking at it."""
    sine, cosine = -eye[1] / eye.norm(), -eye[2] / eye.norm()
    view = torch.eye(4)
    view[1:3, 1:3] = torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])])
    view[:3, 3] = -view[:3, :3] @ eye
    return view[None]


def _points(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Centres [N, 3], unit normals [N, 3] and mean distances to neighbours [N]."""
    u, v = torch.rand(2, n, generator=generator)
    across = (2 * u - 1) * HALF_WIDTH
    deep = NEAREST + v * (WALL_Z - NEAREST)
    ground = torch.stack([across, torch.full_like(u, GROUND_Y), deep], -1)
    wall_y = WALL_TOP + v * (GROUND_Y - WALL_TOP)
    wall = torch.stack([across, wall_y, torch.full_like(u, WALL_Z)], -1)

    spheres = torch.tensor(SPHERES)
    area = 4 * math.pi * spheres[:, 3].square()
    which = torch.multinomial(area, n, replacement=True, generator=generator)
    outward = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    centre, radius = spheres[which, :3], spheres[which, 3:]

    kind = torch.multinomial(torch.tensor(SHARES), n, replacement=True, generator=generator)
    means = torch.stack([ground, wall, centre + radius * outward])[kind, torch.arange(n)]
    up, back = torch.tensor([0.0, -1.0, 0.0]), torch.tensor([0.0, 0.0, -1.0])
    normals = torch.stack([up.expand(n, 3), back.expand(n, 3), outward])[kind, torch.arange(n)]
    areas = torch.stack(
        [
            torch.tensor(2 * HALF_WIDTH * (WALL_Z - NEAREST)),
            torch.tensor(2 * HALF_WIDTH * (GROUND_Y - WALL_TOP)),
            area.sum(),
        ]
    )
    return means, normals, (areas / (torch.tensor(SHARES) * n)).sqrt()[kind]


def _facing(normals: Tensor, angle: Tensor) -> Tensor:
    """Quaternions [N, 4] that turn the z axis to the normals, after a turn by `angle` about z."""
    x, y, z = normals.unbind(-1)
    # The half-way rotation is undefined for z = -1 exactly; either neighbour of it will do.
    w = (1 + z).clamp(min=1e-6)
    c, s = torch.cos(angle / 2), torch.sin(angle / 2)
    # (w, -y, x, 0) * (c, 0, 0, s)
    quats = torch.stack([w * c, -y * c + x * s, x * c + y * s, w * s], -1)
    return torch.nn.functional.normalize(quats, dim=-1)


def _camera() -> Tensor:
    """A world-to-camera matrix [1, 4, 4] with a slight turn, so that no entry is special."""
    yaw, pitch = 0.05, -0.08
    about_y = torch.tensor(
        [
            [math.cos(yaw), 0, math.sin(yaw)],
            [0, 1, 0],
            [-math.sin(yaw), 0, math.cos(yaw)],
        ]
    )
    about_x = torch.tensor(
        [
            [1, 0, 0],
            [0, math.cos(pitch), -math.sin(pitch)],
            [0, math.sin(pitch), math.cos(pitch)],
        ]
    )
    view = torch.eye(4)
    view[:3, :3] = about_x @ about_y
    view[:3, 3] = torch.tensor([0.1, -0.05, 0.3])
    return view[None]
