"""Spherical harmonics: the bases, the op against its twin, gradients, threads."""

import math

import pytest
import torch

import pyext.ops.splat  # noqa: F401  (registers gradients)
from pyext import runtime
from pyext.reference.splat_sh import sh, sh_bases, spherical_harmonics
from tests.ops.splat_scenes import random_weights

ops = torch.ops.pyext
small = pytest.mark.numerics_small
LEAVES = ("means", "centres", "coeffs")


def random_inputs(n, degree, *, batch=2, cameras=2, shared=True, channels=3, extra=0, seed=0):
    """Arguments of `splat_sh` in float64, a third of the Gaussians culled."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    bases = (degree + 1) ** 2 + extra
    sets = 1 if shared else cameras
    radii = torch.randint(0, 3, (batch, cameras, n, 1), generator=generator, dtype=torch.int32)
    return {
        "degree": degree,
        "means": torch.randn(batch, n, 3, **options),
        "centres": torch.randn(batch, cameras, 3, **options),
        "coeffs": torch.randn(batch, sets, n, bases, channels, **options),
        "radii": radii.expand(batch, cameras, n, 2).contiguous(),
    }


def cast(arguments, dtype):
    return arguments | {k: arguments[k].to(dtype) for k in LEAVES}


def run(function, arguments):
    """Colours, and the gradients of their sum with fixed random weights."""
    leaves = {k: arguments[k].detach().requires_grad_() for k in LEAVES}
    colours = function(*(arguments | leaves).values())
    loss = (colours * random_weights(colours).to(colours)).sum()
    # At degree 0 the reference does not look at positions at all.
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return colours, dict(zip(LEAVES, gradients, strict=True))


def sphere(count):
    """Directions and weights that integrate polynomials of degree < 2 count over the sphere."""
    # Gauss-Legendre in z: nodes are the eigenvalues of Legendre's Jacobi matrix.
    k = torch.arange(1, count, dtype=torch.float64)
    side = k / (4 * k * k - 1).sqrt()
    z, vectors = torch.linalg.eigh(torch.diag(side, 1) + torch.diag(side, -1))
    weights = 2 * vectors[0] ** 2
    phi = torch.arange(2 * count, dtype=torch.float64) * (math.pi / count)
    radius = (1 - z * z).sqrt()
    flat = torch.ones_like(phi)
    dirs = torch.stack(
        [radius[:, None] * phi.cos(), radius[:, None] * phi.sin(), z[:, None] * flat], -1
    )
    return dirs.reshape(-1, 3), (weights[:, None] * flat * (math.pi / count)).flatten()


def ours_at(dirs):
    """The op's 25 bases: coefficients are the identity, one channel a basis."""
    n = len(dirs)
    coeffs = torch.eye(25, dtype=dirs.dtype).expand(1, 1, n, 25, 25)
    return ops.splat_sh(4, dirs[None], torch.zeros(1, 1, 3, dtype=dirs.dtype), coeffs, None)[0, 0]


@pytest.mark.parametrize("bases", [lambda d: sh_bases(4, d), ours_at], ids=["reference", "ours"])
def test_bases_are_orthonormal(bases):
    dirs, weights = sphere(8)
    values = bases(dirs)
    gram = (values * weights[:, None]).T @ values
    torch.testing.assert_close(gram, torch.eye(25, dtype=torch.float64), atol=1e-13, rtol=0)


def test_signs_and_order():
    """The first sixteen as published with Kerbl et al. 2023."""
    dirs, _ = sphere(4)
    x, y, z = dirs.unbind(-1)
    published = [
        0.28209479 + 0 * x, -0.48860251 * y, 0.48860251 * z, -0.48860251 * x,
        1.09254843 * x * y, -1.09254843 * y * z, 0.31539157 * (2 * z * z - x * x - y * y),
        -1.09254843 * x * z, 0.54627422 * (x * x - y * y),
        -0.59004359 * y * (3 * x * x - y * y), 2.89061144 * x * y * z,
        -0.45704580 * y * (4 * z * z - x * x - y * y),
        0.37317633 * z * (2 * z * z - 3 * x * x - 3 * y * y),
        -0.45704580 * x * (4 * z * z - x * x - y * y), 1.44530572 * z * (x * x - y * y),
        -0.59004359 * x * (x * x - 3 * y * y),
    ]  # fmt: skip
    expected = torch.stack(published, -1)
    # The published constants have eight decimals.
    for values in (sh_bases(3, dirs), ours_at(dirs)[:, :16]):
        torch.testing.assert_close(values, expected, atol=3e-8, rtol=0)


CASES = {
    "shared": {},
    "per camera": {"shared": False},
    "one camera": {"cameras": 1, "batch": 1},
    "one channel": {"channels": 1},
    "sixteen channels": {"channels": 16},
    "many channels": {"channels": 21},
    "extra coefficients": {"extra": 3},
    "per camera, many channels": {"shared": False, "channels": 17},
}


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=small), torch.float64], ids=["f32", "f64"]
)
@pytest.mark.parametrize("degree", range(5))
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_reference(case, degree, dtype):
    arguments = cast(random_inputs(37, degree, **CASES[case]), dtype)
    expected, want = run(sh, cast(arguments, torch.float64))
    actual, got = run(ops.splat_sh, arguments)
    assert actual.dtype == dtype and actual.shape == expected.shape
    # 25 terms of size about 1, with the direction's rounding times up to 4 in each; gradients are
    # divided by the distance, which may be small.
    bound = 1e-5 if dtype == torch.float32 else 1e-13
    assert (actual - expected).abs().max() <= bound * expected.abs().max()
    for name in LEAVES:
        assert (got[name] - want[name]).norm() <= bound * want[name].norm(), name
        assert degree == 0 or want[name].norm() > 0, name
    culled = (arguments["radii"] == 0).all(-1)
    assert culled.any() and (actual[culled] == 0).all()
    assert (got["coeffs"][:, :, :, (degree + 1) ** 2 :] == 0).all()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("degree", [1, 4])
def test_gradients(degree, shared):
    arguments = random_inputs(5, degree, shared=shared, channels=2, batch=1)
    leaves = [arguments[k].requires_grad_() for k in LEAVES]

    def colours(*leaves):
        return ops.splat_sh(degree, *leaves, arguments["radii"])

    assert torch.autograd.gradcheck(colours, leaves)


@small
def test_from_its_own_centre():
    arguments = cast(random_inputs(20, 4), torch.float32) | {"radii": None}
    arguments["means"][0, 3] = arguments["centres"][0, 1]
    (colours, gradients), (expected, want) = run(ops.splat_sh, arguments), run(sh, arguments)
    torch.testing.assert_close(colours, expected)
    for name in LEAVES:
        assert torch.isfinite(gradients[name]).all(), name
        torch.testing.assert_close(gradients[name], want[name], atol=1e-3, rtol=1e-3)


@small
@pytest.mark.parametrize("function", [ops.splat_sh, sh], ids=["ours", "reference"])
@pytest.mark.parametrize("name", ["means", "coeffs"])
def test_what_is_culled_may_be_not_a_number(function, name):
    arguments = cast(random_inputs(20, 3), torch.float32)
    arguments["radii"][:, :, 3] = 0
    expected, want = run(function, arguments)
    poisoned = arguments | {name: arguments[name].clone()}
    poisoned[name].select(-2 if name == "means" else -3, 3)[:] = math.nan
    actual, got = run(function, poisoned)
    assert torch.equal(actual, expected)
    for key in LEAVES:
        assert torch.equal(got[key], want[key]), key


def test_without_radii_all_are_seen():
    arguments = random_inputs(20, 2)
    seen = arguments | {"radii": torch.ones_like(arguments["radii"])}
    expected, want = run(ops.splat_sh, seen)
    actual, got = run(ops.splat_sh, arguments | {"radii": None})
    assert torch.equal(actual, expected)
    assert all(torch.equal(got[k], want[k]) for k in LEAVES)


@pytest.mark.parametrize("isa", runtime.isas())
@pytest.mark.parametrize("shared", [True, False])
def test_threads(shared, isa):
    arguments = cast(random_inputs(2500, 3, shared=shared), torch.float32)
    with runtime.use_isa(isa):
        with runtime.use_threads(1):
            expected, want = run(ops.splat_sh, arguments)
        for count in (1, 2, 4):
            with runtime.use_threads(count):
                actual, got = run(ops.splat_sh, arguments)
            assert torch.equal(actual, expected)
            assert all(torch.equal(got[k], want[k]) for k in LEAVES)


def test_reference_takes_any_leading_dimensions():
    dirs = torch.randn(2, 5, 3, dtype=torch.float64)
    coeffs = torch.randn(5, 16, 4, dtype=torch.float64)
    colours = spherical_harmonics(2, 7 * dirs, coeffs)
    assert colours.shape == (2, 5, 4)
    torch.testing.assert_close(colours[1, 2], spherical_harmonics(2, dirs[1, 2], coeffs[2]))
