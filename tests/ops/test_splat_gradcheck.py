"""Gradients of `rasterization` in float64 against finite differences, ours and the reference's."""

import pytest
import torch

from pyext.ops import splat
from pyext.reference import splat as reference
from tests.ops.splat_scenes import near_cuts, random_scene, random_weights, run

implementations = pytest.mark.parametrize(
    "rasterization", [splat.rasterization, reference.rasterization], ids=["ours", "reference"]
)


def scene_of(n=4, **options):
    return random_scene(n, 19, 9, size=(0.1, 0.4), dtype=torch.float64, **options)


def check_gradients(rasterization, scene):
    rendered = run(rasterization, scene)
    # Differences across a threshold say nothing about the gradient: no weight there.
    weights = random_weights(rendered.values()) * ~near_cuts(rendered.meta)[..., None]
    names = list(rendered.leaves)

    def loss(*leaves):
        colors, alphas, _ = rasterization(**{**scene, **dict(zip(names, leaves, strict=True))})
        return (torch.cat([colors, alphas], -1) * weights).sum()

    inputs = list(rendered.leaves.values())
    for leaf in torch.autograd.grad(loss(*inputs), inputs):
        assert leaf.abs().max() > 1e-3  # there is something to check
    assert torch.autograd.gradcheck(loss, inputs, atol=1e-6, rtol=1e-6)


@implementations
@pytest.mark.parametrize("covars", [False, True])
@pytest.mark.parametrize("channels", [3, 6])
def test_every_gradient(rasterization, covars, channels):
    check_gradients(rasterization, scene_of(covars=covars, channels=channels))


@implementations
def test_cameras_and_colours_per_camera(rasterization):
    check_gradients(rasterization, scene_of(cameras=2, per_camera=True, seed=2))


@implementations
def test_batch_without_backgrounds(rasterization):
    check_gradients(rasterization, scene_of(3, batch=(2,), backgrounds=False))


@implementations
def test_where_alpha_is_clamped(rasterization):
    scene = scene_of(opacity=(1.0, 1.0), seed=1)
    # Wide enough to be clamped in whole pixels, behind the others.
    scene["means"][0] = torch.tensor([0.0, 0.0, 4.5])
    scene["scales"][0] = 8.0
    assert (rasterization(**scene)[1] > 0.998).any()
    check_gradients(rasterization, scene)


@implementations
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("side", [-1, 1])
def test_where_the_slope_of_the_jacobian_is_clamped(rasterization, axis, side):
    scene = scene_of(2, seed=3)
    # Beyond 1.3 times the half field of view, large enough to reach the image all the same.
    scene["means"][0] = torch.tensor([0.0, 0.0, 2.0])
    scene["means"][0, axis] = 3.0 * side
    scene["scales"][0] = 1.2
    scene["opacities"][0] = 0.9
    alone = {**scene, "opacities": scene["opacities"] * torch.tensor([1.0, 0.0])}
    assert (rasterization(**alone)[1] > 0.03).any()
    check_gradients(rasterization, scene)


@implementations
def test_projection_alone(rasterization):
    """Through `meta`, where every Gaussian that is seen counts, however faint."""
    scene = scene_of(6, cameras=2, seed=5)
    names = ("means", "quats", "scales", "viewmats")

    def projection(*leaves):
        _, _, meta = rasterization(**{**scene, **dict(zip(names, leaves, strict=True))})
        return meta["means2d"], meta["depths"], meta["conics"]

    inputs = [scene[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(projection, inputs, atol=1e-6, rtol=1e-6)
