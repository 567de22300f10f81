"""Fake kernel of `splat_bin`, through which no gradient flows."""

from __future__ import annotations

import torch

from pyext.interface.splat_lists import TILE


@torch.library.register_fake("pyext::splat_bin")
def _(means2d, radii, depths, conics, opacities, width, height, exact):  # type: ignore[no-untyped-def]
    images, N = means2d.shape[0], means2d.shape[1]
    tiles = images * (-(-width // TILE)) * (-(-height // TILE))
    entries = torch.library.get_ctx().new_dynamic_size()
    return (
        means2d.new_empty((tiles + 1,), dtype=torch.int64),
        means2d.new_empty((entries,), dtype=torch.int32),
        means2d.new_empty((images * N,), dtype=torch.int32),
        means2d.new_empty((images * N + 1,), dtype=torch.int64),
        means2d.new_empty((entries,), dtype=torch.int32),
    )
