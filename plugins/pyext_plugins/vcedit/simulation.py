"""A scene, and an editor that contradicts itself from view to view in ways that are declared here.

What needs a diffusion model is replaced by random processes whose inconsistency is known, so that
the geometry (lifting, rendering back, fitting) can be measured against a truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyext.scene import Scene
from pyext.scene.gaussians import SH_C0
from pyext_plugins.vcedit.cameras import Cameras
from pyext_plugins.vcedit.consistency import ViewConsistency
from pyext_plugins.vcedit.fitting import render
from pyext_plugins.vcedit.lifting import render_maps, resize_bilinear

GAUSSIANS, VIEWS, SIZE, MAP = 700, 10, 40, 16  # MAP: the side of the attention maps
CIRCLE, EYE_HEIGHT = 2.6, 1.3  # where the cameras stand, in world units
SPHERES = (((0.0, 0.35, 0.0), 0.35), ((0.8, 0.25, 0.3), 0.25), ((-0.6, 0.3, -0.5), 0.3))
COLORS = ((0.5, 0.55, 0.5), (0.25, 0.55, 0.3), (0.55, 0.5, 0.75))
GROUND_COLOR, GROUND_RADIUS = (0.5, 0.45, 0.4), 1.3
# The two edits an editor may come to: red and blue, as far from the first sphere's colour.
MODES = ((0.9, 0.1, 0.1), (0.1, 0.1, 0.9))
STEPS = 15
SHARPNESS = 4.0  # of the choice between the modes
PACE = 0.22  # of the way to the mode that a step goes
MASK_THRESHOLD = 0.5


@dataclass(frozen=True, eq=False)
class World:
    """One seed's scene, views and truth.

    Args:
        scene: N Gaussians.
        cameras: V views on a circle.
        label: 1 for the Gaussians of the object to be edited, else 0, [N, 1].
        maps: what an attention map of the object should be: the label, rendered, [V, H, W, 1].
        images: renders of the scene, [V, H, W, 3].
    """

    scene: Scene
    cameras: Cameras
    label: Tensor
    maps: Tensor
    images: Tensor

    @property
    def inside(self) -> Tensor:
        """Where the object is most of what is seen, bool [V, H, W]."""
        return self.maps[..., 0] > 0.5

    def ideal_edit(self, mode: int) -> Tensor:
        """The scene with its object in the colour of a mode, rendered."""
        wanted = torch.tensor(MODES[mode])
        color = torch.where(self.label > 0, wanted, 0.5 + SH_C0 * self.scene.sh0[:, 0])
        return render_maps(color, self.cameras, self.scene)


def make_world(generator: torch.Generator) -> World:
    """Three spheres on a disc, seen from a circle."""
    scene, label = _scene(generator)
    cameras = circle_of_cameras(VIEWS, SIZE)
    with torch.no_grad():
        maps = render_maps(label, cameras, scene)
        return World(scene, cameras, label, maps, render(scene, cameras).clamp(0, 1))


def _scene(generator: torch.Generator) -> tuple[Scene, Tensor]:
    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    counts = [GAUSSIANS // 4] * len(SPHERES)
    ground = GAUSSIANS - sum(counts)
    means, colors = [], []
    for (centre, size), color, count in zip(SPHERES, COLORS, counts, strict=True):
        direction = F.normalize(torch.randn(count, 3, generator=generator), dim=-1)
        means.append(torch.tensor(centre) + size * direction)
        colors.append(torch.tensor(color).expand(count, 3))
    radius, angle = GROUND_RADIUS * uniform(ground).sqrt(), 2 * math.pi * uniform(ground)
    means.append(torch.stack([radius * angle.cos(), 0 * radius, radius * angle.sin()], -1))
    colors.append(torch.tensor(GROUND_COLOR).expand(ground, 3))
    mixed = torch.cat(colors) + uniform(GAUSSIANS, 3, low=-0.05, high=0.05)
    scene = Scene(
        means=torch.cat(means),
        scales=uniform(GAUSSIANS, 3, low=0.04, high=0.08).log(),
        quats=torch.randn(GAUSSIANS, 4, generator=generator),
        opacities=torch.logit(uniform(GAUSSIANS, low=0.7, high=0.95)),
        sh0=((mixed - 0.5) / SH_C0)[:, None],
        shN=torch.zeros(GAUSSIANS, 0, 3),
    )
    return scene, (torch.arange(GAUSSIANS) < counts[0]).float()[:, None]


def circle_of_cameras(views: int, size: int) -> Cameras:
    """Cameras on a circle that look at its axis, a little above the ground."""
    target, up = torch.tensor([0.0, 0.25, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    viewmats = torch.eye(4).repeat(views, 1, 1)
    for view in range(views):
        angle = 2 * math.pi * view / views
        eye = torch.tensor([CIRCLE * math.cos(angle), EYE_HEIGHT, CIRCLE * math.sin(angle)])
        forward = F.normalize(target - eye, dim=0)
        right = F.normalize(torch.linalg.cross(forward, up), dim=0)
        rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
        viewmats[view, :3, :3], viewmats[view, :3, 3] = rotation, -rotation @ eye
    focal = 1.1 * size
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    return Cameras(viewmats, K.repeat(views, 1, 1), size, size)


def attention_maps(world: World, generator: torch.Generator) -> Tensor:
    """What a per-view editor attends to: the truth, spoilt in each view by itself.

    A shift by up to 4 pixels, a hole of radius 4 in the object, a false blob (0.8) of radius 3, a
    gain of 0.4 to 1.2; then 16 x 16 positions, and noise of 0.05 there.

    Returns:
        [V, MAP, MAP, 1], not negative.
    """
    spoilt = []
    for truth in world.maps[..., 0]:
        shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
        plane = torch.roll(truth, shift, (0, 1))
        inside = (plane > 0.5).nonzero()
        if len(inside):
            hole = inside[int(torch.randint(len(inside), (), generator=generator))]
            plane = plane * ~_disc(hole, 4.0)
        blob = SIZE * torch.rand(2, generator=generator)
        plane = plane.maximum(0.8 * _disc(blob, 3.0))
        spoilt.append(plane * (0.4 + 0.8 * torch.rand((), generator=generator)))
    coarse = resize_bilinear(torch.stack(spoilt)[..., None], MAP, MAP)
    return (coarse + 0.05 * torch.randn(coarse.shape, generator=generator)).clamp(min=0)


def _disc(centre: Tensor, radius: float) -> Tensor:
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return (y - centre[0]).square() + (x - centre[1]).square() <= radius**2


def editing_masks(maps: Tensor) -> Tensor:
    """Where each view's editor works: above half of its map's maximum, bool [V, H, W]."""
    maps = maps[..., 0]
    return maps > MASK_THRESHOLD * maps.amax((1, 2), keepdim=True)


def sample(
    world: World,
    masks: Tensor,
    consistency: ViewConsistency | None,
    generator: torch.Generator,
) -> Tensor:
    """The simulated sampler: each view of each step picks red or blue and moves towards it.

    The nearer the mean colour in its mask is to a mode, the likelier the view picks it. Pixels
    outside the mask, and the noise, are as in any editor of single views.

    Args:
        masks: where the views are edited, bool [V, H, W].
        consistency: of which `on_prediction` is called; None for views by themselves.

    Returns:
        Edited views in [0, 1], [V, H, W, 3].
    """
    images, modes, inside = world.images, torch.tensor(MODES), masks[..., None]
    size = masks.sum((1, 2)).clamp(min=1)[:, None]
    for step in range(1, STEPS + 1):
        mean = (images * inside).sum((1, 2)) / size
        odds = torch.softmax(-SHARPNESS * (mean[:, None] - modes).square().sum(-1), -1)
        picked = modes[torch.multinomial(odds, 1, generator=generator)[:, 0]][:, None, None]
        noise = 0.01 * torch.randn(images.shape, generator=generator)
        moved = (images + PACE * (picked - images) + noise).clamp(0, 1)
        images = torch.where(inside, moved, world.images)
        if consistency is not None:
            images = consistency.on_prediction(step, images)
    return images
