"""`splat_project` beyond `rasterization`: orthographic cameras, circles, compensations, intrinsics.

Tolerances: a float32 compensation takes a difference of products of variances, whose rounding of
1e-7 is divided by det S / det S', above 1e-3 for these scenes: 1e-4 of it, twice that for
gradients, which divide by it once more.
"""

import itertools
import math

import pytest
import torch

import pyext.ops.splat  # noqa: F401  (registers gradients)
from pyext import runtime
from pyext.reference import splat as reference
from tests.ops.splat_scenes import map_tensors, random_scene, random_weights

ops = torch.ops.pyext
small = pytest.mark.numerics_small
LEAVES = ("means", "covars", "quats", "scales", "viewmats", "Ks")
OPTIONS = {
    f"{'ortho' if ortho else 'pinhole'}, {'circle' if circle else 'box'}, rho_min {rho_min}": {
        "ortho": ortho, "circle": circle, "compensate": True, "rho_min": rho_min,
    }
    for ortho, circle, rho_min in itertools.product((False, True), (False, True), (0.0, 0.8))
}  # fmt: skip


def arguments_of(n=40, *, covars=False, opacities=True, dtype=torch.float64, seed=0, **options):
    """Of `splat_project`, for a batch of two with two cameras."""
    width, height = 32, 24
    scene = random_scene(
        n, width, height, batch=(2,), cameras=2, covars=covars, size=(0.05, 0.4), dtype=dtype,
        seed=seed,
    )  # fmt: skip
    triangle = None
    if covars:
        rows, columns = torch.triu_indices(3, 3)
        triangle = scene["covars"][..., rows, columns].contiguous()
    named = {
        "means": scene["means"], "covars": triangle, "quats": scene["quats"],
        "scales": scene["scales"], "opacities": scene["opacities"] if opacities else None,
        "viewmats": scene["viewmats"], "Ks": scene["Ks"], "width": width, "height": height,
        "eps2d": 0.3, "near_plane": 0.01, "far_plane": 1e10, "radius_clip": 0.0, "ortho": False,
        "circle": False, "compensate": False, "rho_min": 0.0,
    }  # fmt: skip
    if options.get("ortho"):
        # A pixel is then a length in the scene: a few of them for a Gaussian.
        focal = torch.tensor([[10.0, 1, 1], [1, 11.0, 1], [1, 1, 1]], dtype=dtype)
        named["Ks"] = torch.where(named["Ks"] > 5, named["Ks"], 0) * 0 + focal
        named["Ks"][..., 0, 1] = named["Ks"][..., 1, 0] = 0
        named["Ks"][..., 0, 2], named["Ks"][..., 1, 2] = width / 2 + 0.7, height / 2 - 0.4
    return named | options


def run(project, arguments):
    """Outputs, and gradients of a weighted sum of those that have one."""
    leaves = {k: arguments[k].detach().requires_grad_() for k in LEAVES if arguments[k] is not None}
    outputs = project(*(arguments | leaves).values())
    loss = sum((x * random_weights(x).to(x)).sum() for x in outputs[1:])
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return outputs, dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=small), torch.float64], ids=["f32", "f64"]
)
@pytest.mark.parametrize("covars", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_agrees_with_the_reference(options, covars, dtype):
    arguments = arguments_of(covars=covars, dtype=dtype, **OPTIONS[options])
    exact = map_tensors(arguments, lambda x: x.double())
    expected, want = run(reference.project, exact)
    actual, got = run(ops.splat_project, arguments)
    visible = (expected[0] > 0).all(-1)
    assert 0.3 < visible.double().mean() < 1
    # Rounding may lift a radius over the next whole number, and no other here.
    assert (actual[0] - expected[0]).abs().max() <= (1 if dtype == torch.float32 else 0)
    bound = 1e-4 if dtype == torch.float32 else 1e-11
    for a, e in zip(actual[1:], expected[1:], strict=True):
        assert (a - e).abs().max() <= bound * e.abs().max()
    for name in got:
        assert want[name].norm() > 0
        assert (got[name] - want[name]).norm() <= 2 * bound * want[name].norm(), name


@pytest.mark.parametrize("project", [ops.splat_project, reference.project], ids=["ours", "twin"])
@pytest.mark.parametrize("covars", [False, True])
@pytest.mark.parametrize("ortho", [False, True])
@pytest.mark.parametrize("rho_min", [0.0, 0.93])
def test_gradients(rho_min, ortho, covars, project):
    options = {"ortho": ortho, "compensate": True, "rho_min": rho_min}
    arguments = arguments_of(5, covars=covars, seed=1, **options)
    names = [k for k in LEAVES if arguments[k] is not None]
    leaves = [arguments[k].clone().requires_grad_() for k in names]

    def outputs(*leaves):
        return project(*(arguments | dict(zip(names, leaves, strict=True))).values())[1:]

    rho = outputs(*leaves)[3]
    assert (rho > rho_min + 1e-3).any() and ((rho == rho_min) & (rho > 0)).any() == (rho_min > 0)
    assert torch.autograd.gradcheck(outputs, leaves, atol=1e-6, rtol=1e-6)


@small
def test_orthographic_means_and_covariances():
    """u = fx x + cx whatever the depth, and the covariance scaled by the focal lengths."""
    arguments = arguments_of(1, dtype=torch.float32, ortho=True)
    arguments["means"] = torch.tensor([[[0.2, -0.3, 2.0]], [[0.2, -0.3, 50.0]]])
    arguments["quats"] = torch.tensor([1.0, 0, 0, 0]).expand(2, 1, 4)
    arguments["scales"] = torch.tensor([0.3, 0.2, 5.0]).expand(2, 1, 3)
    arguments["viewmats"] = torch.eye(4).expand(2, 2, 4, 4)
    _, means2d, depths, conics, _ = ops.splat_project(*arguments.values())
    centre = torch.tensor([16.7 + 10 * 0.2, 11.6 - 11 * 0.3])
    torch.testing.assert_close(means2d, centre.expand_as(means2d))
    variances = torch.tensor([(10 * 0.3) ** 2 + 0.3, (11 * 0.2) ** 2 + 0.3])
    torch.testing.assert_close(conics[..., ::2], (1 / variances).expand(2, 2, 1, 2))
    assert depths[:, 0, 0].tolist() == [2, 50]


@small
@pytest.mark.parametrize("ortho", [False, True])
@pytest.mark.parametrize("z", [0.0099, -1.0, 101.0, math.nan, math.inf])
def test_depths_that_are_culled(z, ortho):
    arguments = arguments_of(2, dtype=torch.float32, ortho=ortho, far_plane=100.0)
    arguments["viewmats"] = torch.eye(4).expand(2, 2, 4, 4)
    arguments["means"] = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, z]]).expand(2, 2, 3)
    radii, *others = ops.splat_project(*(arguments | {"compensate": True}).values())
    assert (radii[..., 0, :] > 0).all() and (radii[..., 1, :] == 0).all()
    assert all((x[:, :, 1] == 0).all() for x in others)


@small
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("ortho", [False, True])
def test_a_mean_that_is_not_a_number_is_culled(ortho, axis):
    arguments = arguments_of(20, dtype=torch.float32, ortho=ortho, compensate=True)
    arguments["means"][:, 3, axis] = math.nan
    outputs, gradients = run(ops.splat_project, arguments)
    assert all((x[:, :, 3] == 0).all() for x in outputs)
    assert all(torch.isfinite(g).all() for g in gradients.values())


@small
def test_compensation_culls_what_it_makes_faint():
    """0.04 pixels wide: rho is about sigma^2 / 0.3, and half of it below 1/255."""
    arguments = arguments_of(1, dtype=torch.float32)
    arguments["means"] = torch.tensor([0.0, 0, 2]).expand(2, 1, 3)
    arguments["scales"] = torch.full((2, 1, 3), 0.04 / 32 * 2)
    arguments["opacities"] = torch.full((2, 1), 0.5)
    arguments["viewmats"] = torch.eye(4).expand(2, 2, 4, 4)
    seen = ops.splat_project(*arguments.values())[0]
    assert (seen > 0).all()
    held = ops.splat_project(*(arguments | {"compensate": True, "rho_min": 0.02}).values())
    assert (held[0] > 0).all() and (held[0] < seen).any()
    torch.testing.assert_close(held[4], torch.full((2, 2, 1), 0.02))
    faint = ops.splat_project(*(arguments | {"compensate": True}).values())
    assert all((x == 0).all() for x in faint)


@small
def test_circles_do_not_depend_on_opacity():
    arguments = arguments_of(dtype=torch.float32, circle=True)
    radii = ops.splat_project(*arguments.values())[0]
    faint = ops.splat_project(*(arguments | {"opacities": arguments["opacities"] * 0.1}).values())
    assert torch.equal(faint[0], radii)
    assert torch.equal(radii[..., 0], radii[..., 1]) and (radii > 0).any()


def test_nothing_else_changes_without_compensation():
    arguments = arguments_of(dtype=torch.float32, opacities=False)
    plain = ops.splat_project(*arguments.values())
    with_rho = ops.splat_project(*(arguments | {"compensate": True}).values())
    assert plain[4].shape == (2, 2, 0) and with_rho[4].shape == (2, 2, 40)
    assert all(torch.equal(a, b) for a, b in zip(plain[:4], with_rho[:4], strict=True))


@pytest.mark.parametrize("isa", runtime.isas())
def test_threads(isa):
    options = {"ortho": True, "compensate": True}
    arguments = arguments_of(2500, dtype=torch.float32, **options)
    with runtime.use_isa(isa):
        with runtime.use_threads(1):
            expected, want = run(ops.splat_project, arguments)
        for count in (1, 2, 4):
            with runtime.use_threads(count):
                actual, got = run(ops.splat_project, arguments)
            assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
            assert all(torch.equal(got[k], want[k]) for k in want)
