"""From pixels back to Gaussians in plain PyTorch, by the full matrix of weights.

The functions have the signatures of the torch ops ``pyext::splat_unproject``,
``splat_unproject_cells``, ``splat_render_cells`` and ``splat_contributors``. Any float dtype, any
device; memory for H W N weights an image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def weights(means2d: Tensor, *rest: Any) -> Tensor:
    """Of Gaussian n at a pixel of image i, [I, H, W, N]: composites the unit vectors."""
    from pyext.reference.splat import composite  # which imports this module

    conics, opacities, *trailing = rest
    images, n = opacities.shape
    units = torch.eye(n, dtype=means2d.dtype, device=means2d.device).expand(images, n, n)
    return composite(means2d, conics, opacities, units, *trailing)[0]


def _counted(w: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weights of the pixels that count, and which are not zero."""
    if mask is not None:
        w = torch.where(mask[..., None], w, 0)
    return w, w > 0


def unproject(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    values: Tensor,
    mask: Tensor | None,
    *trailing: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum [I, N, D], mass [I, N] and hits [I, N] (int32)."""
    *drawn, count = trailing
    w, hits = _counted(weights(means2d, conics, opacities, *drawn), mask)
    if mask is not None:
        values = torch.where(mask[..., None], values, 0)
    total = torch.einsum("ihwn,ihwd->ind", hits.to(w.dtype) if count else w, values)
    return total, w.sum((1, 2)), hits.sum((1, 2), dtype=torch.int32)


def _compressed(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sizes = (matrix != 0).sum(1)
    crow = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    row, col = matrix.nonzero(as_tuple=True)
    return crow, col, matrix[row, col]


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=False)


def unproject_cells(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    mask: Tensor | None,
    *trailing: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(weights)^T times bilinear upsampling, [N, I cells], as compressed sparse rows.

    And, as in `unproject`, mass [I, N] and hits [I, N] (int32).
    """
    *drawn, count, cell_height, cell_width = trailing
    w, hits = _counted(weights(means2d, conics, opacities, *drawn), mask)
    images, height, width, n = w.shape
    cells = cell_height * cell_width
    units = torch.eye(cells, dtype=w.dtype, device=w.device)
    up = _resize(units.reshape(cells, 1, cell_height, cell_width), height, width)[:, 0]
    matrix = torch.einsum("ihwn,chw->nic", hits.to(w.dtype) if count else w, up)
    mass, number = w.sum((1, 2)), hits.sum((1, 2), dtype=torch.int32)
    return *_compressed(matrix.reshape(n, images * cells)), mass, number


def render_cells(
    means2d: Tensor, conics: Tensor, opacities: Tensor, *trailing: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear downsampling times the weights, [I cells, N], as compressed sparse rows."""
    *drawn, cell_height, cell_width = trailing
    w = weights(means2d, conics, opacities, *drawn)
    images, n = opacities.shape
    small = _resize(w.permute(0, 3, 1, 2), cell_height, cell_width)
    return _compressed(small.permute(0, 2, 3, 1).reshape(images * cell_height * cell_width, n))


def contributors(
    means2d: Tensor, conics: Tensor, opacities: Tensor, *trailing: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [I, H, W, k] and weights of the k largest weights, and the number of all [I, H, W]."""
    *drawn, k = trailing
    images, n = opacities.shape
    order = drawn[2].reshape(images, n).long() % max(n, 1)
    w = weights(means2d, conics, opacities, *drawn)
    front_to_back = order[:, None, None].expand_as(w)
    sorted_weights, at = w.gather(-1, front_to_back).sort(dim=-1, descending=True, stable=True)
    ids = torch.where(sorted_weights > 0, front_to_back.gather(-1, at), -1)
    missing = max(k - n, 0)
    return (
        F.pad(ids[..., :k], (0, missing), value=-1).int(),
        F.pad(sorted_weights[..., :k], (0, missing)),
        (w > 0).sum(-1, dtype=torch.int32),
    )
