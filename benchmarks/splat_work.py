"""What rendering a scene takes at least, counted from the scene itself.

A *row* is one row of one tile's pixels met by one Gaussian: the unit in which a vector machine
evaluates exponents. It counts when at least one of its pixels is not finished and sees an alpha of
1/255 or more. A *contribution* is one pixel that one Gaussian changes. With R rows of 16 pixels, K
contributions, V visible Gaussians and D channels, the floating-point operations are

    forward    250 V + 26 * 16 R + 2 D K
    backward   500 V + 26 * 16 R + (45 + 4 D) K

and the bytes are those of every array that a stage reads or writes, once, at four bytes a number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness import Work
from pyext.interface.splat_dialects import ALPHA_MIN, DIALECTS, TRANSMITTANCE_MIN
from pyext.interface.splat_lists import TILE

FLOAT = 4  # bytes
EXPONENT_OPS = 26  # per pixel of a row: the quadratic 5, exp 13, alpha and T 3, comparisons 5
PROJECTED = 8  # numbers of a projected Gaussian: radii, means2d, depth, conic
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

    def project(self) -> Work:
        floats = 11 * self.gaussians + PROJECTED * self.visible
        return self._work(PROJECT_OPS * self.visible, floats)

    def bin(self) -> Work:
        """No floating-point operations worth counting: integers, moved."""
        return self._work(0, (PROJECTED + 1) * self.visible + 2 * self.entries)

    def composite(self) -> Work:
        flops = self._exponents() + 2 * self.channels * self.contributions
        image = (self.channels + 2) * self.pixels  # colour, transmittance, last contributor
        return self._work(flops, self._record() * self.visible + self.entries + image)

    def composite_backward(self) -> Work:
        """Exponents once more; an entry's sums are written, and read when Gaussians add theirs."""
        per_pair = BACKWARD_OPS + BACKWARD_OPS_PER_CHANNEL * self.channels
        floats = (
            2 * self._record() * self.visible  # records, and the gradients to them
            + 2 * (1 + self._record()) * self.entries
            + (self.channels + 1) * self.pixels
        )
        return self._work(self._exponents() + per_pair * self.contributions, floats)

    def project_backward(self) -> Work:
        floats = 2 * 10 * self.gaussians + 6 * self.visible
        return self._work(2 * PROJECT_OPS * self.visible, floats)

    def forward(self) -> Work:
        return self.project() + self.bin() + self.composite()

    def backward(self) -> Work:
        return self.composite_backward() + self.project_backward()

    def _exponents(self) -> int:
        return EXPONENT_OPS * TILE * self.rows

    def _record(self) -> int:
        """Floats of a Gaussian on the image: centre, conic, opacity, features."""
        return 6 + self.channels

    @staticmethod
    def _work(flops: int, floats: int) -> Work:
        return Work(flops=float(flops), bytes=float(FLOAT * floats))


def count(meta: dict, channels: int) -> Counts:
    """Counts of the one image whose `rasterization` returned ``meta``, tile by tile in float64."""
    width, height, tiles_x = meta["width"], meta["height"], meta["tile_width"]
    drawn = meta["footprints"]
    flat = [x.detach().double().flatten(0, 1) for x in drawn.geometry]
    ids, bounds = drawn.lists.tile_ids.long(), drawn.lists.tile_offsets.tolist()
    rows = contributions = 0
    for tile in range(len(bounds) - 1):
        x = torch.arange(tile % tiles_x * TILE, min(tile % tiles_x * TILE + TILE, width))
        y = torch.arange(tile // tiles_x * TILE, min(tile // tiles_x * TILE + TILE, height))
        members = ids[bounds[tile] : bounds[tile + 1]]
        in_rows, in_pixels = count_tile(x + 0.5, y + 0.5, *(values[members] for values in flat))
        rows += in_rows
        contributions += in_pixels
    visible = int((meta["radii"] > 0).all(-1).sum())
    return Counts(
        gaussians=drawn.opacities.numel(),
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
    alpha = (opacities[:, None, None] * torch.exp(-sigma)).clamp(
        max=DIALECTS["gsplat-1.5"].alpha_max
    )
    seen = alpha >= ALPHA_MIN
    after = torch.cumprod(1 - torch.where(seen, alpha, 0), 0)
    kept = after > TRANSMITTANCE_MIN
    alive = torch.cat([torch.ones_like(kept[:1]), kept[:-1]])
    return int((seen & alive).any(-1).sum()), int((seen & kept).sum())
