"""The Gaussians of a picture: parameters, the camera that looks at them, and where they start.

The picture hangs in a thin slab in front of a pinhole camera at the origin, which looks along z;
x points right and y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyext.ops.splat import rasterization
from pyext.scene.gaussians import SH_C0, Scene

DISTANCE, THICKNESS = 4.0, 0.1  # of the slab, in world units
UNIFORM_SHARE = 0.3  # of the starting places; the others follow the picture's edges
SMALLEST, LARGEST = 0.7, 20.0  # pixels, of the starting standard deviations

# Unconstrained parameters by name, float32: means [N, 3]; log_scales [N, 3]; quats [N, 4],
# (w, x, y, z); logit_opacities [N]; dc [N, 3].
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera whose longer side sees 53 degrees."""

    width: int
    height: int

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return float(max(self.width, self.height))

    @property
    def world_per_pixel(self) -> float:
        """The size of a pixel where the slab begins, in world units."""
        return DISTANCE / self.focal

    @property
    def intrinsics(self) -> Tensor:
        """[3, 3], in pixels."""
        f = self.focal
        return torch.tensor([[f, 0, self.width / 2], [0, f, self.height / 2], [0, 0, 1]])


def start(picture: Tensor, gaussians: int, seed: int) -> Parameters:
    """Round, half-transparent Gaussians in the colours of the picture [H, W, 3].

    Places are drawn in proportion to the gradient of brightness, mixed with a uniform share; sizes
    follow from how densely a place is drawn. The same arguments give the same bits.

    Args:
        picture: colours in [0, 1], float32, [H, W, 3].
        gaussians: how many, N.
        seed: of the random places.
    """
    height, width, _ = picture.shape
    camera = Camera(width, height)
    generator = torch.Generator().manual_seed(seed)
    density = _density(picture)
    chosen = torch.multinomial(density.flatten(), gaussians, replacement=True, generator=generator)
    corner = torch.stack([chosen % width, chosen // width], -1)
    pixels = corner + torch.rand(gaussians, 2, generator=generator)
    depth = DISTANCE + THICKNESS * torch.rand(gaussians, 1, generator=generator)
    world_per_pixel = depth / camera.focal
    centre = torch.tensor([width / 2, height / 2])
    # One Gaussian's share of the picture is the area of a disc of this radius.
    radius = (1 / (math.pi * gaussians * density.flatten()[chosen])).sqrt()
    scales = radius.clamp(SMALLEST, LARGEST)[:, None] * world_per_pixel
    return {
        "means": torch.cat([(pixels - centre) * world_per_pixel, depth], -1),
        "log_scales": scales.log().repeat(1, 3),
        "quats": torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(gaussians, 1),
        "logit_opacities": torch.zeros(gaussians),
        "dc": (picture.flatten(0, 1)[chosen] - 0.5) / SH_C0,
    }


def _density(picture: Tensor) -> Tensor:
    """The probability of each pixel [H, W] to be a starting place."""
    grey = picture.mean(-1)
    edges = torch.zeros_like(grey)
    edges[:, 1:-1] += (grey[:, 2:] - grey[:, :-2]).square()
    edges[1:-1] += (grey[2:] - grey[:-2]).square()
    edges = edges.sqrt()
    uniform = torch.full_like(edges, 1 / edges.numel())
    total = edges.sum()
    if total == 0:  # a picture of one colour
        return uniform
    return UNIFORM_SHARE * uniform + (1 - UNIFORM_SHARE) * edges / total


def render(parameters: Parameters, camera: Camera, shrink: float = 1.0) -> Tensor:
    """The picture [H, W, 3], not clipped, on black; ``shrink`` multiplies all sizes."""
    colors, _, _ = rasterization(
        means=parameters["means"],
        quats=parameters["quats"],
        scales=parameters["log_scales"].exp() * shrink,
        opacities=parameters["logit_opacities"].sigmoid(),
        # Viewers cut negative colours off; what is fitted must be what they show.
        colors=(0.5 + SH_C0 * parameters["dc"]).clamp(min=0),
        viewmats=torch.eye(4)[None],
        Ks=camera.intrinsics[None],
        width=camera.width,
        height=camera.height,
    )
    return colors[0]


def as_scene(parameters: Parameters) -> Scene:
    """The same Gaussians by the names of a scene file; colour does not depend on the view."""
    values = {name: value.detach() for name, value in parameters.items()}
    return Scene(
        means=values["means"],
        scales=values["log_scales"],
        quats=values["quats"],
        opacities=values["logit_opacities"],
        sh0=values["dc"][:, None],
        shN=torch.zeros(len(values["dc"]), 0, 3),
    )
