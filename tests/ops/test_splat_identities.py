"""What must hold whatever the implementation: closed forms, symmetries, sums."""

import math

import pytest
import torch

from pyext.ops.splat import rasterization
from tests.ops.splat_scenes import (
    cameras_around,
    lone_gaussian,
    random_scene,
    random_weights,
    run,
)

pytestmark = pytest.mark.numerics_small

PER_GAUSSIAN = ("means", "quats", "scales", "opacities", "colors")


def assert_same(actual, expected):
    """Bitwise, for tensors or dictionaries of them."""
    if isinstance(expected, torch.Tensor):
        actual, expected = {"": actual}, {"": expected}
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        assert torch.equal(actual[name], want), name


def assert_near(actual, expected, tolerance):
    """As vectors, for tensors or dictionaries of them."""
    if isinstance(expected, torch.Tensor):
        actual, expected = {"": actual}, {"": expected}
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        assert (actual[name] - want).norm() <= tolerance * want.norm(), name


# Closed forms.


@pytest.mark.parametrize("opacity", [0.3, 0.9, 0.9995, 1.0])
@pytest.mark.parametrize("scale", [0.0, 0.05, 0.2])
def test_one_isotropic_gaussian(scale, opacity):
    scene = lone_gaussian(scales=torch.full((1, 3), scale), opacities=torch.tensor([opacity]))
    _, alphas, meta = rasterization(**scene)
    variance = (40.0 * scale / 2.0) ** 2 + 0.3
    torch.testing.assert_close(
        meta["conics"][0, 0], torch.tensor([1 / variance, 0.0, 1 / variance])
    )
    offset = torch.arange(33.0) - 16
    exact = opacity * torch.exp(-(offset**2 + offset[:, None] ** 2) / (2 * variance))
    expected = torch.where(exact < 1 / 255, 0, exact.clamp(max=0.999))
    assert alphas[0, 16, 16, 0] == pytest.approx(min(0.999, opacity), abs=1e-6)
    torch.testing.assert_close(alphas[0, :, :, 0], expected, atol=2e-6, rtol=0)


def test_extent_follows_opacity():
    opacities = torch.tensor([1.0, 0.02])
    _, _, meta = rasterization(**lone_gaussian(n=2, opacities=opacities))
    sigma = math.sqrt(2.0**2 + 0.3)
    expected = [math.ceil(k * sigma) for k in (3.33 - 2e-3, math.sqrt(2 * math.log(255 * 0.02)))]
    assert meta["radii"][0].tolist() == [[r, r] for r in expected]


@pytest.mark.parametrize("front", [0, 1])
def test_two_gaussians_in_either_order(front):
    depths = torch.tensor([2.0, 2.0])
    depths[1 - front] = 4.0
    scene = lone_gaussian(
        n=2,
        means=torch.stack([torch.zeros(2), torch.zeros(2), depths], -1),
        opacities=torch.tensor([0.6, 0.7]),
        colors=torch.eye(2),
        backgrounds=torch.tensor([[10.0, 20.0]]),
    )
    colors, alphas, _ = rasterization(**scene)
    weights = torch.tensor([0.3 * 0.6, 0.7] if front else [0.6, 0.4 * 0.7])
    left = 0.4 * 0.3
    torch.testing.assert_close(colors[0, 16, 16], weights + left * scene["backgrounds"][0])
    torch.testing.assert_close(alphas[0, 16, 16, 0], torch.tensor(1 - left))


def test_equal_depths_keep_the_order_of_the_input():
    scene = lone_gaussian(n=40, opacities=torch.full((40,), 0.5), colors=torch.eye(40))
    colors, _, _ = rasterization(**scene)
    # The thirteenth halving brings T to 1.2e-4; the next would end below 1e-4.
    expected = torch.where(torch.arange(40) < 13, 0.5 ** torch.arange(1.0, 41), 0)
    torch.testing.assert_close(colors[0, 16, 16], expected)


@pytest.mark.parametrize("opacity, transmittance", [(1.0, 1e-3), (0.99, 1e-2), (0.8, 0.2**5)])
def test_a_wall_stops_before_transmittance_reaches_the_cut(opacity, transmittance):
    # A pixel ends before the Gaussian that would bring T to 1e-4 or below: that one is left out.
    _, alphas, _ = rasterization(
        **lone_gaussian(n=50, scales=torch.full((50, 3), 9.0), opacities=torch.full((50,), opacity))
    )
    assert alphas.max() <= 1 - 1e-4 and alphas.min() > 0.98
    torch.testing.assert_close(
        1 - alphas[0, 16, 16, 0], torch.tensor(transmittance), rtol=1e-3, atol=0
    )


def test_backgrounds_show_through():
    scene = random_scene(20, 24, 20, cameras=2, opacity=(0.05, 0.4))
    background = scene.pop("backgrounds").requires_grad_()
    black, alphas, _ = rasterization(**scene)
    colors, _, _ = rasterization(**scene, backgrounds=background)
    left = 1 - alphas
    torch.testing.assert_close(colors, black + left * background[:, None, None])
    weights = random_weights(colors).float()
    (gradient,) = torch.autograd.grad((colors * weights).sum(), background)
    torch.testing.assert_close(gradient, (weights * left).sum((1, 2)), rtol=1e-5, atol=1e-5)


# Symmetries.


def test_permutation_of_gaussians():
    scene = random_scene(60, 30, 20, seed=8)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    plain = run(rasterization, scene)
    mixed = run(rasterization, scene | {name: scene[name][order] for name in PER_GAUSSIAN})
    assert_same(mixed.values(), plain.values())
    weights = random_weights(plain.values())
    expected, actual = plain.gradients(weights), mixed.gradients(weights)
    assert_same({k: actual[k] for k in PER_GAUSSIAN}, {k: expected[k][order] for k in PER_GAUSSIAN})
    # The view's gradient is a sum over Gaussians, in the order of the input.
    assert_near(actual["viewmats"], expected["viewmats"], 1e-5)


def quaternion_product(p, q):
    p, q = torch.broadcast_tensors(p, q)
    (a, v), (b, w) = p.split([1, 3], -1), q.split([1, 3], -1)
    return torch.cat(
        [a * b - (v * w).sum(-1, keepdim=True), a * w + b * v + v.cross(w, dim=-1)], -1
    )


def rotation_matrix(q):
    """Columns are the axes as a unit quaternion turns them, q e q*."""
    q = q[..., None, :]
    axes = torch.eye(4, dtype=q.dtype)[1:]
    conjugate = q * torch.tensor([1, -1, -1, -1])
    return quaternion_product(quaternion_product(q, axes), conjugate)[..., 1:].mT


@pytest.mark.parametrize("covars", [False, True])
def test_rigid_motion_of_scene_and_camera(covars):
    scene = random_scene(40, 30, 20, cameras=2, covars=covars)
    turn = torch.tensor([0.6, 0.0, 0.48, 0.64])
    rotation = rotation_matrix(turn)
    motion = torch.eye(4)
    motion[:3, :3], motion[:3, 3] = rotation, torch.tensor([0.3, -1.0, 2.0])
    moved = scene | {
        "means": scene["means"] @ rotation.T + motion[:3, 3],
        "viewmats": scene["viewmats"] @ torch.linalg.inv(motion),
    }
    if covars:
        moved["covars"] = rotation @ scene["covars"] @ rotation.T
    else:
        moved["quats"] = quaternion_product(turn, scene["quats"])
    plain, there = run(rasterization, scene), run(rasterization, moved)
    torch.testing.assert_close(there.values(), plain.values(), atol=1e-4, rtol=0)
    weights = random_weights(plain.values())
    expected, actual = plain.gradients(weights), there.gradients(weights)
    assert_near(actual["means"] @ rotation, expected["means"], 1e-3)
    assert_near(actual["opacities"], expected["opacities"], 1e-3)


@pytest.mark.parametrize("factor", [-1.0, 4.0, 0.3])
def test_quaternions_of_any_norm_and_sign(factor):
    scene = random_scene(40, 30, 20)
    plain = run(rasterization, scene)
    scaled = run(rasterization, scene | {"quats": factor * scene["quats"]})
    weights = random_weights(plain.values())
    expected, actual = plain.gradients(weights), scaled.gradients(weights)
    actual["quats"] = actual["quats"] * factor
    if factor == 0.3:
        torch.testing.assert_close(scaled.values(), plain.values(), atol=1e-5, rtol=0)
        assert_near(actual, expected, 1e-4)
    else:  # sign and powers of two are exact
        assert_same(scaled.values(), plain.values())
        assert_same(actual, expected)


@pytest.mark.parametrize("split", [(1, 7), (3, 5), (4, 4), (2, 6), (2, 2, 4)])
def test_channels_in_chunks(split):
    scene = random_scene(40, 30, 20, channels=8)
    whole = run(rasterization, scene)
    chunks = [
        run(rasterization, scene | {"colors": colors, "backgrounds": backgrounds})
        for colors, backgrounds in zip(
            scene["colors"].split(split, -1), scene["backgrounds"].split(split, -1), strict=True
        )
    ]
    assert_same(torch.cat([c.colors for c in chunks], -1), whole.colors)
    for chunk in chunks:
        assert_same(chunk.alphas, whole.alphas)
    weights = random_weights(whole.colors)
    zero = torch.zeros_like(whole.alphas)
    expected = whole.gradients(torch.cat([weights, zero], -1))
    parts = [
        chunk.gradients(torch.cat([part, zero], -1))
        for chunk, part in zip(chunks, weights.split(split, -1), strict=True)
    ]
    shared = [name for name in expected if name not in ("colors", "backgrounds")]
    assert_near(
        {name: sum(part[name] for part in parts) for name in shared},
        {name: expected[name] for name in shared},
        1e-5,
    )
    assert_near(torch.cat([part["colors"] for part in parts], -1), expected["colors"], 1e-5)


@pytest.mark.parametrize("batch", [(2,), (1, 2)])
def test_batches_are_loops(batch):
    scene = random_scene(20, 30, 20, batch=batch, cameras=2)
    whole = run(rasterization, scene)
    weights = random_weights(whole.values())
    gradients = whole.gradients(weights)
    for index in torch.cartesian_prod(*map(torch.arange, batch)).reshape(-1, len(batch)).tolist():
        at = tuple(index)
        single = run(
            rasterization,
            scene | {k: v[at] for k, v in scene.items() if isinstance(v, torch.Tensor)},
        )
        assert_same(whole.values()[at], single.values())
        assert_same({k: v[at] for k, v in gradients.items()}, single.gradients(weights[at]))


def test_cameras_are_loops():
    scene = random_scene(20, 30, 20, cameras=3)
    whole = run(rasterization, scene)
    weights = random_weights(whole.values())
    gradients = whole.gradients(weights)
    singles = []
    for c in range(3):
        views = {k: scene[k][c : c + 1] for k in ("viewmats", "Ks", "backgrounds")}
        single = run(rasterization, scene | views)
        assert_same(whole.values()[c], single.values()[0])
        singles.append(single.gradients(weights[c : c + 1]))
        assert_same(gradients["viewmats"][c], singles[-1]["viewmats"][0])
    for name in PER_GAUSSIAN:
        assert_near(gradients[name], sum(g[name] for g in singles), 1e-6)


def test_covars_of_quats_and_scales():
    """Only the upper triangle is read; gradients come back there."""
    scene = random_scene(40, 30, 20)
    unit = torch.nn.functional.normalize(scene["quats"].double(), dim=-1)
    axes = rotation_matrix(unit) * scene["scales"].double()[:, None]
    covars = (axes @ axes.mT).float()
    lower = torch.ones(3, 3, dtype=torch.bool).tril(-1)
    given = run(rasterization, scene | {"covars": torch.where(lower, torch.nan, covars)})
    plain = run(rasterization, scene)
    torch.testing.assert_close(given.values(), plain.values(), atol=1e-5, rtol=0)
    weights = random_weights(plain.values())
    loss = (given.values() * weights).sum()
    gradient = torch.autograd.grad(loss, given.leaves["covars"])[0]
    assert (gradient[:, lower] == 0).all() and (gradient[:, ~lower] != 0).any(0).all()


# Sums.


def test_rendering_ones_gives_alpha():
    scene = random_scene(60, 30, 20, cameras=2, backgrounds=False, opacity=(0.1, 1.0))
    colors, alphas, _ = rasterization(**scene | {"colors": torch.ones(60, 1)})
    torch.testing.assert_close(colors, alphas, atol=2e-6, rtol=0)


def test_adjoint():
    """The image is linear in the colours: <render(f), M> = <f, gradient of <render(.), M>>."""
    scene = random_scene(60, 30, 20, cameras=2, backgrounds=False, channels=5)
    rendered = run(rasterization, scene)
    weights = random_weights(rendered.values())
    weights[..., -1] = 0
    gradient = rendered.gradients(weights)["colors"]
    left = (rendered.values() * weights).sum()
    right = (scene["colors"].double() * gradient).sum()
    scale = (rendered.values() * weights).abs().sum()
    assert (left - right).abs() <= 1e-5 * scale and left.abs() > 1e-3 * scale


def test_moving_the_camera_is_moving_the_scene_the_other_way():
    scene = random_scene(60, 30, 20)
    rendered = run(rasterization, scene)
    gradients = rendered.gradients(random_weights(rendered.values()))
    rotation = scene["viewmats"][0, :3, :3]
    translation = rotation @ gradients["means"].sum(0)
    assert_near(gradients["viewmats"][0, :3, 3], translation, 1e-4)
    assert (gradients["viewmats"][0, 3] == 0).all()


def test_camera_matrices_are_rotations():
    """The scenes' own cameras, on which rigid motion relies."""
    rotation = cameras_around(torch.Generator().manual_seed(0), 2, 3)[..., :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double().expand(2, 3, 3, 3))
