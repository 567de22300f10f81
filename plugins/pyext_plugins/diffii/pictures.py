"""The demo's pictures: samples of every arm, and the walk around one circle."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pyext.ops import circle
from pyext_plugins.diffii.arms import GUIDANCE
from pyext_plugins.diffii.digits import CLASSES, Pictures
from pyext_plugins.diffii.models import Guide, to_bytes
from pyext_plugins.diffii.study import Inverted
from pyext_plugins.picture import save_png, save_row

ZOOM, GAP = 5, 2  # pixels a pixel, and between pictures
EACH = 5  # samples of a class
PLACES = 24  # on the circle


def save_grid(path: Path, pictures: Pictures) -> None:
    """Samples of each class, a row of the picture each."""
    rows = [pictures.images[pictures.labels == k][:EACH] for k in range(CLASSES)]
    short = EACH - min(len(row) for row in rows)
    filled = [F.pad(row, (0, 0, 0, 0, 0, 0, 0, short), value=-1.0)[:EACH] for row in rows]
    save_png(path, _tiled(torch.stack(filled)))


def save_walk(path: Path, inverted: Inverted) -> None:
    """Around the circle through the first two inversions of each of some classes: a row each.

    From the first inversion on the left, by equal angles; the second is at the right of its row,
    somewhere: its place is 2 pi - alpha.
    """
    draw, model = inverted.draw, inverted.model
    angles = 2 * math.pi * torch.arange(PLACES, dtype=torch.float64) / PLACES
    chosen = [0, 3, 8]
    pairs = torch.tensor([[k * draw.shots, k * draw.shots + 1] for k in chosen])
    found = circle.interp(inverted.inversions, pairs, angles.expand(len(chosen), -1).contiguous())
    labels = [str(k) for k in chosen for _ in range(PLACES)]
    guide = Guide(labels, [""] * len(labels), 0.0, GUIDANCE)
    images = model.denoise(found.z.flatten(0, 1), guide).view(len(chosen), PLACES, 1, 8, 8)
    ends = draw.train.images[pairs]
    save_row(path, [_tiled(images), _tiled(ends)])


def _tiled(images: Tensor) -> Tensor:
    """[rows, columns, 1, H, W] in [-1, 1] to one picture."""
    rows, columns = images.shape[:2]
    tiles = to_bytes(images.flatten(0, 1)).repeat_interleave(ZOOM, 1).repeat_interleave(ZOOM, 2)
    height, width = tiles.shape[1] + GAP, tiles.shape[2] + GAP
    tiles = F.pad(tiles, (0, 0, 0, GAP, 0, GAP), value=128)
    return (
        tiles.view(rows, columns, height, width, 3)
        .transpose(1, 2)
        .reshape(rows * height, columns * width, 3)
    )
