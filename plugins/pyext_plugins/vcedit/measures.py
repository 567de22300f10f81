"""What the demo measures on one seed: maps against their truth, edits against the ideal one."""

from __future__ import annotations

import torch
from torch import Tensor

from pyext.ops.splat import rasterization, unproject
from pyext_plugins.picture import psnr
from pyext_plugins.vcedit.lifting import geometry, tile_lists
from pyext_plugins.vcedit.simulation import MODES, World, editing_masks


def of_maps(world: World, maps: Tensor) -> dict[str, float]:
    """Of maps [V, H, W, 1] at the images' size.

    MAE to the truth; IoU of the masks an editor makes of them; spread: how much the views' own
    values for a Gaussian differ, as a standard deviation, averaged with the Gaussians' masses.
    """
    masks, truth = editing_masks(maps), world.inside
    meta = tile_lists(world.cameras, world.scene)
    values, mass, _ = unproject(maps, meta, per_view=True)
    values, total = values[..., 0], mass.sum(0).clamp(min=1e-12)
    mean = (values * mass).sum(0) / total
    variance = ((values - mean).square() * mass).sum(0) / total
    return {
        "MAE": float((maps - world.maps).abs().mean()),
        "IoU": float((masks & truth).sum() / (masks | truth).sum()),
        "spread": float((variance.sqrt() * total).sum() / total.sum()),
    }


def of_edit(world: World, images: Tensor) -> dict[str, float]:
    """Of edited views [V, H, W, 3].

    Share of views in the mode of the majority; distance of the views' mean object colours to the
    nearest mode; leak: mean change outside the object; PSNR to the object recoloured in the
    majority's mode.
    """
    inside = world.inside[..., None]
    colors = (images * inside).sum((1, 2)) / inside.sum((1, 2))
    distances = (colors[:, None] - torch.tensor(MODES)).norm(dim=-1)
    votes = distances.argmin(1).bincount(minlength=len(MODES))
    change = (images - world.images).abs().mean(-1)
    return {
        "agreement": float(votes.max() / len(images)),
        "distance": float(distances.min(1).values.mean()),
        "leak": float(change[~world.inside].mean()),
        "PSNR (dB)": psnr(images, world.ideal_edit(int(votes.argmax()))),
    }


def adjoint_error(world: World, generator: torch.Generator) -> float:
    """|<A c, M> - <c, A^T M>| relative to the sum of the absolute products."""
    values = torch.randn(len(world.scene), 3, generator=generator)
    maps = torch.randn(*world.images.shape, generator=generator)
    rendered, _, meta = rasterization(
        **geometry(world.scene), colors=values, **world.cameras.arguments()
    )
    lifted = unproject(maps, meta, mode="weight", normalize=None).values
    left, right = rendered.double() * maps.double(), values.double() * lifted.double()
    return float((left.sum() - right.sum()).abs() / left.abs().sum())
