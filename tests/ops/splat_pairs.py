"""Compositing pairs of a Gaussian and a pixel, as `rasterize_to_indices_in_range` gives them."""

from __future__ import annotations

import torch

from pyext.ops import splat

SIZE = (40, 36)

# About a thousand faint Gaussians a tile, none of which ends a pixel; or few that end most.
FAINT = {"n": 2400, "opacity": (0.006, 0.015), "size": (0.3, 0.6), "cameras": 2}
DENSE = {"n": 64, "opacity": (0.8, 1.0), "size": (0.3, 0.6), "cameras": 2}


def weights_of(alphas, rays, count):
    """Front-to-back weights [K] of alphas whose rays, 0 to count - 1, ascend."""
    sizes = torch.bincount(rays, minlength=count)
    rank = torch.arange(len(rays)) - (sizes.cumsum(0) - sizes)[rays]
    dense = alphas.new_zeros(count, int(sizes.max()) if len(rays) else 0)
    dense = dense.index_put((rays, rank), alphas)
    before = torch.nn.functional.pad(torch.cumprod(1 - dense, 1), (1, 0), value=1.0)[:, :-1]
    return (dense * before)[rays, rank]


def accumulate(found, drawn, size):
    """Colours and alphas of pairs of a Gaussian and a pixel, over black, in front of nothing."""
    means2d, conics, opacities, colors = drawn
    gaussians, pixels, images = found
    points, shapes = means2d[images, gaussians], conics[images, gaussians]
    dx, dy = points[:, 0] - pixels % size[0] - 0.5, points[:, 1] - pixels // size[0] - 0.5
    a, b, c = shapes.unbind(-1)
    sigma = 0.5 * (a * dx**2 + c * dy**2) + b * dx * dy
    alphas = (opacities[images, gaussians] * (-sigma).exp()).clamp(max=0.999)
    assert (alphas > 0.0039).all() and (sigma > -1e-6).all()
    count = len(means2d) * size[0] * size[1]
    rays = images * size[0] * size[1] + pixels
    weights = weights_of(alphas, rays, count)
    image = (len(means2d), size[1], size[0])
    rgb = colors.new_zeros(count, colors.shape[-1])
    rgb = rgb.index_add(0, rays, weights[:, None] * colors[images, gaussians])
    cover = weights.new_zeros(count).index_add(0, rays, weights)
    return rgb.reshape(*image, -1), cover.reshape(image)


def lists_of(scene):
    """Of one scene without batch: what is drawn, its lists, and the image over black."""
    colors, alphas, meta = splat.rasterization(**scene | {"backgrounds": None, "packed": False})
    features = scene["colors"].expand(*meta["opacities"].shape, -1)
    drawn = (meta["means2d"], meta["conics"], meta["opacities"], features)
    return drawn, (meta["isect_offsets"], meta["flatten_ids"]), (colors, alphas[..., 0]), meta
