"""Backward of more (tile, Gaussian) entries times channels than its buffer of 4 MB holds."""

import torch

from pyext.ops.splat import rasterization
from tests.ops.splat_scenes import lone_gaussian, random_weights, run


def test_bands_of_tiles_add_up():
    """Equal channels and equal upstream gradients add up to those of one channel."""
    side, n, channels = 64, 1100, 400
    generator = torch.Generator().manual_seed(0)
    # Points on the corners of tiles: four tiles each, few pixels, so that the test stays cheap.
    corners = torch.randint(1, 4, (n, 2), generator=generator) * 16.0
    depths = 2 + torch.rand(n, 1, generator=generator)
    focal = 64.0
    scene = lone_gaussian(
        side,
        side,
        focal,
        n,
        means=torch.cat([(corners - 32.5) / focal * depths, depths], -1),
        scales=torch.full((n, 3), 1e-3),
        opacities=0.01 + 0.1 * torch.rand(n, generator=generator),
        colors=torch.rand(n, 1, generator=generator),
    )
    one = run(rasterization, scene)
    assert len(one.meta["flatten_ids"]) * (channels + 6) * 4 > 4 << 20
    weights = random_weights(one.values()).float()
    weights[..., 1] = 0
    expected = one.gradients(weights)
    many = run(rasterization, scene | {"colors": scene["colors"].expand(n, channels)})
    image = weights[..., :1].expand(1, side, side, channels) / channels
    actual = many.gradients(torch.cat([image, weights[..., 1:]], -1))
    actual["colors"] = actual["colors"].sum(-1, keepdim=True)
    for name, want in expected.items():
        assert (actual[name] - want).norm() <= 1e-4 * want.norm(), name
