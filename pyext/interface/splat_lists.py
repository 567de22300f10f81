"""Tile lists: which Gaussians reach which tile."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 16


class TileLists(NamedTuple):
    """Which Gaussians reach which tile of 16 x 16 pixels, front to back: what `bin` returns.

    I images, N Gaussians, M entries (pairs of a tile and a Gaussian). Flat ids are i N + n.
    """

    tile_offsets: Tensor  # [I tiles + 1] int64: first entry of each tile
    tile_ids: Tensor  # [M] int32: flat ids, tile by tile, front to back within a tile
    order: Tensor  # [I N] int32: flat ids, image by image, visible ones first, front to back
    starts: Tensor  # [I N + 1] int64: entries of order[r] are entries_of[starts[r]:starts[r + 1]]
    entries_of: Tensor  # [M] int32: for each Gaussian in `order`, its positions in tile_ids

    def tiles_per_gaussian(self) -> Tensor:
        """Number of tiles each Gaussian reaches, by flat id, [I N] int32."""
        counts = self.starts.diff().int()
        return torch.empty_like(counts).index_copy_(0, self.order.long(), counts)

    def keys(self, depths: Tensor, images: int) -> Tensor:
        """The sorting key of every entry: image, tile, and the depth's bits, [M] int64.

        Args:
            depths: by flat id, float32, [I N].
            images: I.
        """
        tiles = self.tile_offsets.numel() - 1
        tile = torch.repeat_interleave(
            torch.arange(tiles, device=depths.device), self.tile_offsets.diff()
        )
        per_image = max(tiles // max(images, 1), 1)
        bits = tile_bits(per_image)
        key = tile // per_image << bits | tile % per_image
        return key << 32 | depths[self.tile_ids.long()].view(torch.int32).long()


def tile_bits(tiles: int) -> int:
    """Bits of a tile id in a key: as many as the number of tiles takes."""
    return tiles.bit_length()


def tiles_along(width: int, height: int) -> tuple[int, int]:
    """Columns and rows of tiles of an image."""
    return -(-width // TILE), -(-height // TILE)


def check_ids(name: str, ids: Tensor, limit: int) -> None:
    """Refuse indices outside 0 to limit - 1. This reads them; not while torch compiles."""
    if ids.numel() == 0 or torch.compiler.is_compiling():
        return
    lowest, highest = map(int, ids.aminmax())
    if lowest < 0 or highest >= limit:
        raise ValueError(
            f"{name}: expected indices from 0 to below {limit}, got {lowest} to {highest}"
        )


def check_offsets(name: str, offsets: Tensor) -> None:
    """Refuse offsets that do not rise from 0. This reads them; not while torch compiles.

    Args:
        name: of the argument.
        offsets: with the end of the last list, the number of entries.
    """
    if torch.compiler.is_compiling():
        return
    steps = F.pad(offsets, (1, 0)).diff()
    steps[0].abs_().neg_()  # the first is zero
    wrong = (steps < 0).nonzero()
    if len(wrong):
        at = int(wrong[0])
        got = f"{int(offsets[at - 1])} before {int(offsets[at])}" if at else int(offsets[0])
        raise ValueError(
            f"{name}: expected offsets that rise from 0 to at most {int(offsets[-1])}, the number "
            f"of entries, got {got}{'' if at else ' first'}"
        )


def lists_from_tiles(tile_offsets: Tensor, tile_ids: Tensor, gaussians: int) -> TileLists:
    """Complete lists from the two that gsplat's callers hold.

    Args:
        tile_offsets: first entry of each tile and the end of the last, [I tiles + 1] int64.
        tile_ids: flat ids, tile by tile, [M] int32.
        gaussians: I N.
    """
    ids = tile_ids.long()
    counts = torch.bincount(ids, minlength=gaussians)
    return TileLists(
        tile_offsets,
        tile_ids,
        torch.arange(gaussians, dtype=torch.int32, device=ids.device),
        torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        ids.argsort(stable=True).int(),
    )
