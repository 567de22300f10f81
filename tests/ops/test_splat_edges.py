"""Nothing, too much, too near, too far, not a number: defined results, and no harm to others."""

import math

import pytest
import torch

from pyext.ops.splat import rasterization
from pyext.reference import splat as reference
from tests.ops.splat_scenes import (
    cast,
    lone_gaussian,
    near_cuts,
    random_scene,
    random_weights,
    run,
)

pytestmark = pytest.mark.numerics_small

IMPLEMENTATIONS = {"ours": rasterization, "reference": reference.rasterization}


def assert_renders_nothing(scene):
    rendered = run(rasterization, scene)
    assert (rendered.values() == 0).all()
    assert rendered.meta["flatten_ids"].numel() == 0
    for name, gradient in rendered.gradients(torch.ones_like(rendered.values())).items():
        assert (gradient == 0).all(), name
    return rendered


# How many.


@pytest.mark.parametrize("covars", [False, True])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_no_gaussians(batch, covars):
    scene = random_scene(0, 20, 18, batch=batch, cameras=2, covars=covars)
    rendered = run(rasterization, scene)
    assert (rendered.alphas == 0).all()
    assert torch.equal(
        rendered.colors, scene["backgrounds"][..., None, None, :].expand(*batch, 2, 18, 20, 3)
    )
    gradients = rendered.gradients(torch.ones_like(rendered.values()))
    assert (gradients["backgrounds"] == 20 * 18).all()
    assert all(gradients[name].shape == scene[name].shape for name in gradients)


@pytest.mark.parametrize("options", [{"cameras": 0}, {"batch": (0,)}, {"batch": (2, 0)}])
def test_no_images(options):
    scene = random_scene(3, 20, 18, **options)
    rendered = run(rasterization, scene)
    assert rendered.colors.shape == (*scene["viewmats"].shape[:-2], 18, 20, 3)
    for name, gradient in rendered.gradients(torch.ones_like(rendered.values())).items():
        assert (gradient == 0).all(), name


@pytest.mark.parametrize("channels", [513, 1000])
def test_many_channels(channels):
    scene = random_scene(6, 18, 5, channels=channels)
    few = scene | {k: scene[k][..., -3:] for k in ("colors", "backgrounds")}
    colors, alphas, _ = rasterization(**scene)
    expected, expected_alphas, _ = rasterization(**few)
    assert torch.equal(colors[..., -3:], expected) and torch.equal(alphas, expected_alphas)


# How large and where.


@pytest.mark.parametrize("opacity", [0.3, 1.0])
def test_covering_everything(opacity):
    _, alphas, _ = rasterization(
        **lone_gaussian(40, 35, scales=torch.full((1, 3), 1e5), opacities=torch.tensor([opacity]))
    )
    torch.testing.assert_close(alphas, torch.full((1, 35, 40, 1), min(opacity, 0.999)))


@pytest.mark.parametrize(
    "z, seen",
    [(0.0099, False), (0.01, True), (0.0101, True), (0.0, False), (-2.0, False)]
    + [(9e9, True), (1e10, True), (1.001e10, False)],
)
def test_near_and_far_planes(z, seen):
    scene = lone_gaussian(means=torch.tensor([[0.0, 0.0, z]]))
    if seen:
        rendered = run(rasterization, scene)
        assert rendered.alphas.detach()[0, 16, 16, 0] == pytest.approx(0.5, abs=1e-6)
        gradients = rendered.gradients(random_weights(rendered.values()))
        assert all(torch.isfinite(g).all() for g in gradients.values())
    else:
        assert_renders_nothing(scene)


@pytest.mark.parametrize(
    "means", [[9.0, 0.0, 2.0], [-9.0, 0.0, 2.0], [0.0, 9.0, 2.0], [0.0, -9.0, 2.0], [0, 0, -1.0]]
)
def test_all_culled(means):
    assert_renders_nothing(lone_gaussian(means=torch.tensor([means])))


def test_culled_shows_the_background():
    scene = lone_gaussian(opacities=torch.zeros(1), backgrounds=torch.tensor([[0.25]]))
    assert (rasterization(**scene)[0] == 0.25).all()


@pytest.mark.parametrize("zeroed", [[0], [1], [2], [0, 1], [0, 1, 2]])
def test_flat_gaussians(zeroed):
    """A disc, a needle, a point: the blur makes all of them valid."""
    scene = random_scene(12, 24, 20, size=(0.1, 0.3))
    scene["scales"][:, zeroed] = 0
    exact = run(reference.rasterization, cast(scene, torch.float64))
    ours = run(rasterization, scene)
    clear = ~near_cuts(exact.meta)[..., None]
    assert (ours.meta["radii"] > 0).all(-1).sum() > 6
    assert ((ours.values() - exact.values()).abs() * clear).max() < 1e-5
    weights = random_weights(exact.values()) * clear
    actual = ours.gradients(weights)
    for name, want in exact.gradients(weights).items():
        assert (actual[name] - want).norm() <= 5e-5 * want.norm() + 1e-12, name


@pytest.mark.parametrize("eps2d, expected", [(0.0, 0.0), (0.3, 0.5)])
def test_a_point_without_blur_is_culled(eps2d, expected):
    _, alphas, _ = rasterization(**lone_gaussian(scales=torch.zeros(1, 3), eps2d=eps2d))
    assert alphas.max() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("opacity, seen", [(0.0, False), (1 / 255, False), (1.01 / 255, True)])
def test_faint(opacity, seen):
    scene = lone_gaussian(opacities=torch.tensor([opacity]))
    if seen:
        _, alphas, _ = rasterization(**scene)
        # Only where alpha stays above 1/255: within 0.3 pixels for these sigmas.
        assert (alphas > 0).sum() == 1
    else:
        assert_renders_nothing(scene)


@pytest.mark.parametrize("focal", [1e5, 1e10])
def test_huge_focal_length(focal):
    rendered = run(rasterization, lone_gaussian(focal=focal))
    torch.testing.assert_close(rendered.alphas, torch.full((1, 33, 33, 1), 0.5), atol=1e-4, rtol=0)
    assert rendered.meta["radii"].max() <= 2**30
    gradients = rendered.gradients(random_weights(rendered.values()))
    assert all(torch.isfinite(g).all() for g in gradients.values())


@pytest.mark.parametrize("width, height", [(1, 1), (1, 40), (40, 1), (15, 17), (16, 16)])
def test_an_image_is_a_window_of_a_larger_one(width, height):
    # Discs that face the camera: the clamp of the Jacobian, which knows the image's size, moves
    # only what has depth.
    scene = random_scene(40, 48, 48, size=(0.02, 0.2)) | {"viewmats": torch.eye(4)[None]}
    scene["scales"][:, 2] = 0
    scene["quats"][:, 1:3] = 0
    large, _, _ = rasterization(**scene)
    scene["Ks"] = scene["Ks"].clone()
    x, y = 25 - width // 2, 24 - height // 2
    scene["Ks"][..., :2, 2] -= torch.tensor([x, y])
    window, _, _ = rasterization(**{**scene, "width": width, "height": height})
    expected = large[:, y : y + height, x : x + width]
    assert (expected - scene["backgrounds"]).abs().max() > 0.05
    torch.testing.assert_close(window, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("covars", [False, True])
def test_the_tensors_decide_the_device(implementation, covars):
    render = IMPLEMENTATIONS[implementation]
    scene = random_scene(12, 20, 18, covars=covars)
    expected, _, _ = render(**scene)
    with torch.device("meta"):  # the default of new tensors
        actual, _, _ = render(**scene)
    assert torch.equal(actual, expected)


# Not a number.

POISONS = [
    ("means", math.nan), ("means", math.inf), ("quats", math.nan), ("quats", math.inf),
    ("quats", 0.0), ("scales", math.nan), ("scales", math.inf), ("scales", 1e18),
    ("opacities", math.nan), ("opacities", -math.inf), ("opacities", -1.0),
    ("covars", math.nan), ("covars", math.inf),
]  # fmt: skip


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name, value", POISONS)
def test_a_poisoned_row_is_culled_alone(name, value, implementation):
    """Its gradients are zero, and all others are what they are with that row transparent."""
    scene = random_scene(20, 40, 33, cameras=2, covars=name == "covars")
    row = 3
    scene["means"][row] = torch.tensor([0.0, 0.0, 2.5])
    scene["opacities"][row] = 0.5
    render = IMPLEMENTATIONS[implementation]
    assert (render(**scene)[2]["radii"][:, row] > 0).all()

    clean = scene | {"opacities": scene["opacities"].clone()}
    clean["opacities"][row] = 0
    poisoned = scene | {name: scene[name].clone()}
    poisoned[name][row] = value
    expected, actual = run(render, clean), run(render, poisoned)
    assert (actual.meta["radii"][:, row] == 0).all()
    assert torch.equal(actual.values(), expected.values())
    weights = random_weights(expected.values())
    wanted = expected.gradients(weights)
    for key, gradient in actual.gradients(weights).items():
        torch.testing.assert_close(gradient, wanted[key], msg=lambda text, key=key: f"{key} {text}")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_overflowing_covariance_is_culled_alone(implementation):
    # 20^2 times 1e36 is beyond float32.
    scene = lone_gaussian(n=2, scales=torch.tensor([[1e18] * 3, [0.1] * 3]))
    rendered = run(IMPLEMENTATIONS[implementation], scene)
    assert (rendered.meta["radii"][0] > 0).tolist() == [[False, False], [True, True]]
    for name, gradient in rendered.gradients(random_weights(rendered.values())).items():
        assert torch.isfinite(gradient).all(), name


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_poisoned_colour_stays_in_the_tiles_it_reaches(value):
    scene = random_scene(20, 48, 48, size=(0.02, 0.1))
    scene["means"][3] = torch.tensor([0.0, 0.0, 2.5])
    poisoned = scene | {"colors": scene["colors"].clone()}
    poisoned["colors"][3] = value
    expected, actual = run(rasterization, scene), run(rasterization, poisoned)
    # By tile, [tiles_y, tiles_x, 16 * 16 * channels].
    tiles = [
        x.values()[0].unflatten(0, (3, 16)).unflatten(2, (3, 16)).transpose(1, 2).flatten(2)
        for x in (expected, actual)
    ]
    offsets = expected.meta["isect_offsets"].flatten().tolist()
    ids = expected.meta["flatten_ids"].tolist()
    reached = torch.tensor(
        [3 in ids[a:b] for a, b in zip(offsets, offsets[1:] + [len(ids)], strict=True)]
    ).reshape(3, 3)
    assert 0 < reached.sum() < 9
    assert torch.equal(tiles[0][~reached], tiles[1][~reached])
    assert not torch.isfinite(tiles[1][reached]).all()
    assert torch.equal(actual.alphas, expected.alphas)
