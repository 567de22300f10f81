"""gsplat's sub-ops that go through pixels, under gsplat's names: see `gsplat_names`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from pyext.interface.splat_checks import check_supported
from pyext.interface.splat_dialects import ALPHA_MIN, DIALECTS, TRANSMITTANCE_MIN
from pyext.interface.splat_lists import (
    TILE,
    check_ids,
    check_offsets,
    lists_from_tiles,
    tiles_along,
)
from pyext.interface.splat_meta import keep_absgrad
from pyext.ops._splat.gsplat_names import flat, packed_rows

_ops = torch.ops.pyext
_ALPHA_MAX = DIALECTS["gsplat-1.5"].alpha_max
_BATCH = TILE * TILE  # Gaussians of a tile that gsplat's ranges count as one
_CHUNK = 1 << 19  # pairs of a pixel and a Gaussian looked at together


def _tile_lists(
    isect_offsets: Tensor,
    flatten_ids: Tensor,
    images: tuple[int, ...],
    size: tuple[int, int],
    gaussians: int,
) -> tuple[Tensor, Tensor]:
    """Offsets with the end of the last tile, [I tiles + 1] int64, and ids [M] int32, checked."""
    tiles_x, tiles_y = tiles_along(*size)
    shape = (*images, tiles_y, tiles_x)
    if isect_offsets.shape != shape:
        raise ValueError(
            f"isect_offsets: expected shape {list(shape)}, got {list(isect_offsets.shape)}"
        )
    if flatten_ids.dim() != 1:
        raise ValueError(f"flatten_ids: expected shape [M], got {list(flatten_ids.shape)}")
    entries = flatten_ids.numel()
    offsets = F.pad(isect_offsets.flatten().long(), (0, 1), value=entries)
    check_offsets("isect_offsets", offsets)
    check_ids("flatten_ids", flatten_ids, gaussians)
    return offsets, flatten_ids.int()


def _only_tiles(masks: Tensor, offsets: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The lists with those of masked tiles empty."""
    if masks.dtype != torch.bool:
        raise TypeError(f"masks: expected dtype torch.bool, got {masks.dtype}")
    keep, sizes = masks.flatten(), offsets.diff()
    ends = torch.where(keep, sizes, 0).cumsum(0)
    return F.pad(ends, (1, 0)), ids[keep.repeat_interleave(sizes)]


def rasterize_to_pixels(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    image_width: int,
    image_height: int,
    tile_size: int,
    isect_offsets: Tensor,
    flatten_ids: Tensor,
    backgrounds: Tensor | None = None,
    masks: Tensor | None = None,
    packed: bool = False,
    absgrad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Front-to-back compositing of projected Gaussians.

    Args:
        means2d [..., N, 2], conics [..., N, 3], colors [..., N, D], opacities [..., N]; when
            packed, V rows: [V, 2], [V, 3], [V, D], [V].
        isect_offsets: [..., tile_height, tile_width] int32; flatten_ids: [M] int32, what
            `isect_tiles` gave.
        backgrounds: [..., D]. masks: tiles to draw, bool, like isect_offsets.
        absgrad: after backward, ``means2d.absgrad`` is the sum over pixels of the absolute
            gradient.

    Returns:
        Colours [..., H, W, D] and alphas [..., H, W, 1].

    Raises:
        ValueError, TypeError: a shape or dtype is wrong, or the lists point outside of what is
            given; the argument is named.
    """
    check_supported(tile_size=tile_size)
    images = isect_offsets.shape[:-2] if packed else means2d.shape[:-2]
    rows = means2d.shape[-2]
    count = images.numel()
    gaussians = rows if packed else count * rows
    size = image_width, image_height
    offsets, ids = _tile_lists(isect_offsets, flatten_ids, images, size, gaussians)
    if masks is not None:
        offsets, ids = _only_tiles(flat(masks, "masks", *isect_offsets.shape), offsets, ids)
    # The compositor knows a Gaussian by its flat id, so packed rows fill images in their order.
    n = -(-rows // max(count, 1)) if packed else rows

    def by_image(tensor: Tensor, name: str, *tail: int) -> Tensor:
        if not packed:
            return flat(tensor, name, rows, *tail)
        values = packed_rows(tensor, name, rows, *tail)
        padding = [0, 0] * len(tail) + [0, count * n - rows]
        return F.pad(values, padding).reshape(count, n, *values.shape[1:])

    points = by_image(means2d, "means2d", 2)
    absolute = None
    if absgrad and means2d.requires_grad:
        absolute = keep_absgrad(means2d, count, n, slice(gaussians))
    out, transmittance, _ = _ops.splat_composite(
        points,
        by_image(conics, "conics", 3),
        by_image(opacities, "opacities"),
        by_image(colors, "colors", -1),
        *lists_from_tiles(offsets, ids, count * n),
        *(*size, _ALPHA_MAX, absolute),
    )
    if backgrounds is not None:
        background = flat(backgrounds, "backgrounds", -1)[:, None, None]
        out = torch.addcmul(out, transmittance.unsqueeze(-1), background)
    return (
        out.reshape(*images, *out.shape[1:]),
        (1 - transmittance).reshape(*images, image_height, image_width, 1),
    )


def _by_tile(planes: Tensor) -> Tensor:
    """Images [I, H, W] cut into tiles [I tiles, 16, 16]; zero beyond the edges."""
    height, width = planes.shape[1:]
    tiles_x, tiles_y = tiles_along(width, height)
    padded = F.pad(planes, (0, tiles_x * TILE - width, 0, tiles_y * TILE - height))
    cut = padded.unflatten(2, (tiles_x, TILE)).unflatten(1, (tiles_y, TILE))
    return cut.transpose(2, 3).reshape(-1, TILE, TILE)


def _chunks(sizes: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Tiles whose lists are not empty, longest first, in groups that fit: [t] and the longest."""
    ordered, tiles = sizes.sort(descending=True, stable=True)
    longest: list[int] = ordered[ordered > 0].tolist()
    first = 0
    while first < len(longest):
        last = first + max(_CHUNK // (_BATCH * longest[first]), 1)
        yield tiles[first : min(last, len(longest))], longest[first]
        first = last


@torch.no_grad()
def rasterize_to_indices_in_range(
    range_start: int,
    range_end: int,
    transmittances: Tensor,
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    image_width: int,
    image_height: int,
    tile_size: int,
    isect_offsets: Tensor,
    flatten_ids: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Which Gaussians contribute to which pixels, some of each tile's list at a time.

    Every tile's list is counted in batches of 256 Gaussians, front to back; those of batches
    ``range_start`` to ``range_end`` - 1 are composited behind what the transmittances stand for. A
    pixel ends before the Gaussian that would bring its transmittance to 1e-4; as in gsplat, it is
    only its transmittance that a later call knows of that.

    Args:
        range_start, range_end: batches, the second exclusive; beyond the last is no error.
        transmittances: [..., H, W], 1 where nothing has been drawn yet.
        means2d [..., N, 2], conics [..., N, 3], opacities [..., N].
        isect_offsets: [..., tile_height, tile_width] int32; flatten_ids: [M] int32.

    Returns:
        Gaussians n, pixels (row-major) and images, three times [K] int64, by image, then pixel,
        then front to back.

    Raises:
        ValueError: a shape is wrong, or the lists point outside of what is given; the argument is
            named.
    """
    check_supported(tile_size=tile_size)
    images, N = means2d.shape[:-2], means2d.shape[-2]
    size = image_width, image_height
    offsets, ids = _tile_lists(isect_offsets, flatten_ids, images, size, images.numel() * N)
    points = flat(means2d, "means2d", N, 2).reshape(-1, 2)
    shapes = flat(conics, "conics", N, 3).reshape(-1, 3)
    peaks = flat(opacities, "opacities", N).flatten()
    left = _by_tile(flat(transmittances, "transmittances", image_height, image_width))

    starts, ends = (
        (offsets[:-1] + int(min(batch, ids.numel())) * _BATCH).minimum(offsets[1:])
        for batch in (range_start, range_end)
    )
    tiles_x, tiles_y = tiles_along(*size)
    pixel = torch.arange(TILE, device=ids.device)
    found: list[tuple[Tensor, Tensor]] = []
    for tiles, longest in _chunks(ends - starts):
        entries = starts[tiles, None] + torch.arange(longest, device=ids.device)
        listed = entries < ends[tiles, None]
        members = ids[entries.clamp(max=ids.numel() - 1)].long()  # [t, longest], and now pixels:
        x, y = ((k[:, None] * TILE + pixel) for k in (tiles % tiles_x, tiles // tiles_x % tiles_y))
        u, v = points[members][:, None].unbind(-1)
        a, b, c = shapes[members][:, None, None].unbind(-1)
        dx = (u - (x[..., None] + 0.5))[:, None]  # [t, 1, 16, longest]
        dy = (v - (y[..., None] + 0.5))[:, :, None]  # [t, 16, 1, longest]
        sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
        alpha = (peaks[members][:, None, None] * torch.exp(-sigma)).clamp(max=_ALPHA_MAX)
        alpha = torch.where((sigma >= 0) & (alpha >= ALPHA_MIN) & listed[:, None, None], alpha, 0)
        # What remains never rises: what is kept is a prefix, as if taken one by one.
        remains = left[tiles, ..., None] * torch.cumprod(1 - alpha, -1)
        t, i, j, k = ((remains > TRANSMITTANCE_MIN) & (alpha > 0)).nonzero().unbind(-1)
        image = tiles[t] // (tiles_x * tiles_y)
        place = (image * image_height + y[t, i]) * image_width + x[t, j]
        found.append((members[t, k] % N, place))
    if not found:
        nothing = ids.new_zeros(0, dtype=torch.int64)
        return nothing, nothing, nothing
    gaussians, places = map(torch.cat, zip(*found, strict=True))
    by_pixel = places.argsort(stable=True)
    places = places[by_pixel]
    pixels = image_width * image_height
    return gaussians[by_pixel], places % pixels, places // pixels
