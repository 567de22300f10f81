"""What rendering a scene takes at least, counted from the scene itself.

A *row* is one row of one tile's pixels met by one Gaussian: the unit in which a vector machine
evaluates exponents. It counts when at least one of its pixels is not finished and sees an alpha of
1/255 or more. A *contribution* is one pixel that one Gaussian changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness import Work
from pyext.interface.splat import ALPHA_MAX, TILE
from pyext.reference.splat import ALPHA_MIN, TRANSMITTANCE_MIN

FLOAT = 4  # bytes
EXPONENT_OPS = 26  # per pixel of a row: the quadratic 5, exp 13, alpha and T 3, comparisons 5
PROJECT_OPS = 250  # per visible Gaussian, and about twice that on the way back
BACKWARD_OPS, BACKWARD_OPS_PER_CHANNEL = 45, 4  # per contribution


@dataclass(frozen=True)
class Counts:
    """Of one rendered image."""

    gaussians: int
    visible: int
    entries: int  # (tile, Gaussian) pairs of the tile lists
    rows: int
    contributions: int
    pixels: int
    channels: int

    def forward(self) -> Work:
        """The card of operations: projection, exponents by rows, one FMA a channel and pixel.

        Bytes: parameters once, what is known of a projected Gaussian written and read once per
        entry, lists written and read, the image written.
        """
        flops = (
            PROJECT_OPS * self.visible
            + EXPONENT_OPS * TILE * self.rows
            + 2 * self.channels * self.contributions
        )
        floats = (
            (11 + self.channels) * self.gaussians  # means, quats, scales, opacities, features
            + 9 * self.visible  # radii, means2d, depths, conics, written
            + (6 + self.channels + 4) * self.entries  # read by tiles; ids and slots, both ways
            + (self.channels + 2) * self.pixels
        )
        return Work(flops=float(flops), bytes=float(FLOAT * floats))

    def backward(self) -> Work:
        """Exponents once more, then the gradients of alpha, shape and features by contribution.

        Bytes: as forward, with the slots of an entry's sums written and read in place of the lists.
        """
        per_pair = BACKWARD_OPS + BACKWARD_OPS_PER_CHANNEL * self.channels
        flops = (
            2 * PROJECT_OPS * self.visible
            + EXPONENT_OPS * TILE * self.rows
            + per_pair * self.contributions
        )
        floats = (
            2 * (11 + self.channels) * self.gaussians
            + 2 * 6 * self.visible
            + (6 + self.channels + 2 + 2 * (6 + self.channels)) * self.entries
            + (self.channels + 3) * self.pixels
        )
        return Work(flops=float(flops), bytes=float(FLOAT * floats))


def add(a: Work, b: Work) -> Work:
    return Work(flops=a.flops + b.flops, bytes=a.bytes + b.bytes)


def count(meta: dict, channels: int) -> Counts:
    """Counts of the one image whose `rasterization` returned ``meta``, tile by tile in float64."""
    width, height, tiles_x = meta["width"], meta["height"], meta["tile_width"]
    flat = {
        name: meta[name].detach().double().reshape(-1, *meta[name].shape[2:])
        for name in ("means2d", "conics", "opacities")
    }
    ids = meta["flatten_ids"].long()
    bounds = [*meta["isect_offsets"].flatten().tolist(), ids.numel()]
    rows = contributions = 0
    for tile in range(len(bounds) - 1):
        x = torch.arange(tile % tiles_x * TILE, min(tile % tiles_x * TILE + TILE, width))
        y = torch.arange(tile // tiles_x * TILE, min(tile // tiles_x * TILE + TILE, height))
        members = ids[bounds[tile] : bounds[tile + 1]]
        in_rows, in_pixels = count_tile(
            x + 0.5, y + 0.5, *(values[members] for values in flat.values())
        )
        rows += in_rows
        contributions += in_pixels
    visible = int((meta["radii"] > 0).all(-1).sum())
    return Counts(
        gaussians=flat["opacities"].numel(),
        visible=visible,
        entries=ids.numel(),
        rows=rows,
        contributions=contributions,
        pixels=width * height,
        channels=channels,
    )


def count_tile(
    x: Tensor, y: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor
) -> tuple[int, int]:
    """Rows and contributions in a tile with pixel centres x [W] and y [H], Gaussians in order."""
    if not len(means2d):
        return 0, 0
    dx = (means2d[:, 0, None, None] - x).expand(-1, len(y), -1)
    dy = means2d[:, 1, None, None] - y[:, None]
    a, b, c = (z[:, None, None] for z in conics.unbind(-1))
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (opacities[:, None, None] * torch.exp(-sigma)).clamp(max=ALPHA_MAX)
    seen = alpha >= ALPHA_MIN
    after = torch.cumprod(1 - torch.where(seen, alpha, 0), 0)
    kept = after > TRANSMITTANCE_MIN
    alive = torch.cat([torch.ones_like(kept[:1]), kept[:-1]])
    return int((seen & alive).any(-1).sum()), int((seen & kept).sum())
