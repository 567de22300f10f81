"""Gradients in use: 1,000 Gaussians fitted to a picture, by the kernels and by plain PyTorch."""

import torch

from pyext.ops import splat
from pyext.reference import splat as reference
from pyext.runtime import use_threads
from tests.ops.splat_scenes import random_scene

WIDTH, HEIGHT = 32, 24


def picture():
    """A disc, stripes and a slope, [H, W, 3]."""
    y = (torch.arange(HEIGHT) + 0.5)[:, None] / HEIGHT
    x = (torch.arange(WIDTH) + 0.5) / WIDTH
    disc = ((x - 0.6) ** 2 + (y - 0.4) ** 2 < 0.06).float()
    stripes = 0.5 + 0.5 * torch.sin(25 * x + 9 * y)
    return torch.stack([0.2 + 0.6 * disc, 0.8 * stripes, x * y + 0.3 * (1 - disc)], -1)


def psnr_of_a_fit(rasterization, steps):
    """In decibels, after so many steps of Adam from one start."""
    scene = random_scene(1000, WIDTH, HEIGHT, size=(0.01, 0.04), backgrounds=False)
    start = {
        "means": scene["means"], "scales": scene["scales"].log(), "quats": scene["quats"],
        "opacities": scene["opacities"].logit(), "colors": scene["colors"].clamp(0, 1),
    }  # fmt: skip
    p = {name: value.clone().requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.Adam(p.values(), lr=1e-2)
    target = picture()

    def error():
        colors, _, _ = rasterization(
            p["means"], p["quats"], p["scales"].exp(), p["opacities"].sigmoid(), p["colors"],
            scene["viewmats"], scene["Ks"], WIDTH, HEIGHT,
        )  # fmt: skip
        return (colors[0] - target).square().mean()

    for _ in range(steps):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    return float(-10 * torch.log10(error().detach()))


def test_a_fit_is_as_good_as_plain_pytorchs():
    with use_threads(1):  # plain PyTorch's tensors are too small to share
        eager = psnr_of_a_fit(reference.rasterization, 300)
    ours = psnr_of_a_fit(splat.rasterization, 300)
    assert psnr_of_a_fit(splat.rasterization, 0) < 15
    assert ours > 36
    assert abs(ours - eager) < 0.2
