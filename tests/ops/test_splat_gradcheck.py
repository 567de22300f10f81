"""Gradients of `rasterization` in float64 against finite differences."""

import torch

from pyext.ops.splat import rasterization


def test_every_gradient_matches_finite_differences():
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    n = 6
    means = torch.cat([uniform(n, 2) - 0.5, uniform(n, 1) + 2], -1)
    viewmats = torch.eye(4, dtype=torch.float64)[None].clone()
    viewmats[0, 0, 3] = 0.05
    intrinsics = torch.tensor([[[20.0, 0, 10], [0, 22, 11], [0, 0, 1]]], dtype=torch.float64)
    inputs = [
        means,
        uniform(n, 4) - 0.5,
        uniform(n, 3) * 0.2 + 0.1,
        uniform(n) * 0.5 + 0.3,
        uniform(n, 3),
        viewmats,
        uniform(1, 3),
    ]
    weights = uniform(1, 17, 23, 4)

    def loss(means, quats, scales, opacities, colors, viewmats, backgrounds):
        image, alphas, _ = rasterization(
            means, quats, scales, opacities, colors, viewmats, intrinsics, 23, 17,
            backgrounds=backgrounds,
        )  # fmt: skip
        return (torch.cat([image, alphas], -1) * weights).sum()

    for tensor in inputs:
        tensor.requires_grad_()
    # Steps of 1e-6 cross the cut at alpha 1/255 in few pixels, each by 1e-6 of its weight.
    assert torch.autograd.gradcheck(loss, inputs, atol=1e-4, rtol=1e-3)
