"""From pixels back to Gaussians: against the reference, identities, gradients, masks, edges.

Tolerances: a weight is an alpha times a transmittance, each right to some 1e-6, and a sum over a
few hundred pixels adds roundings of its own: 1e-5 of the largest in float32.
"""

import pytest
import torch

from pyext import runtime
from pyext.ops import splat
from pyext.reference import splat as reference
from tests.ops.splat_scenes import cast, lone_gaussian, near_cuts, random_scene, random_weights

small = pytest.mark.numerics_small
modes = pytest.mark.parametrize("mode", ["weight", "count"])
IMPLEMENTATIONS = pytest.mark.parametrize("family", [splat, reference], ids=["ours", "reference"])


def rendered(scene, family=splat):
    """Colours over black, alphas, meta."""
    return family.rasterization(**{**scene, "backgrounds": None})


def random_values(alphas, channels, seed=1):
    shape = (*alphas.shape[:-1], channels)
    return random_weights(torch.empty(shape), seed).to(alphas.dtype)


def random_mask(alphas):
    generator = torch.Generator().manual_seed(2)
    return torch.rand(alphas.shape[:-1], generator=generator) < 0.7


def clear_mask(scene):
    """Pixels in which both dtypes take the same side of every threshold."""
    _, _, meta = rendered(cast(scene, torch.float64), reference)
    return ~near_cuts(meta)


def assert_near(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    bound = tolerance * max(float(expected.abs().max()), 1e-30) if expected.numel() else 0
    assert ((actual.double() - expected.double()).abs() <= bound).all()


CASES = {
    "one channel": {"n": 30, "channels": 1},
    "three channels": {"n": 30, "channels": 3},
    "channels": {"n": 30, "channels": 21},
    "many channels": {"n": 12, "channels": 100},
    "views": {"n": 20, "channels": 2, "cameras": 3},
    "batch": {"n": 9, "channels": 5, "cameras": 2, "batch": (1, 2)},
    "opaque": {"n": 60, "channels": 3, "opacity": (0.9, 1.0), "size": (0.3, 0.6)},
}


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float32, marks=small), torch.float64],
    ids=["float32", "float64"],
)
@pytest.mark.parametrize("case", CASES)
@modes
def test_agreement(case, mode, dtype):
    scene = random_scene(width=37, height=21, dtype=dtype, **CASES[case])
    colors, alphas, meta = rendered(scene)
    values, clear = random_values(alphas, colors.shape[-1]), clear_mask(scene)
    assert clear.double().mean() > 0.9
    _, _, exact = rendered(cast(scene, torch.float64), reference)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for normalize in ("mass", "count", None):
        for per_view in (False, True):
            options = {"mode": mode, "normalize": normalize, "per_view": per_view, "mask": clear}
            want = reference.unproject(values.double(), exact, **options)
            got = splat.unproject(values, meta, **options)
            assert want.count.max() > 10 and got.count.dtype == torch.int32
            assert torch.equal(got.count, want.count)
            assert_near(got.mass, want.mass, tolerance)
            assert_near(got.values, want.values, tolerance)


@small
def test_adjoint_of_rendering():
    """<render(f), M> = <f, unproject(M)>."""
    scene = random_scene(60, 40, 33, cameras=2, channels=5)
    colors, alphas, meta = rendered(scene)
    values = random_values(alphas, 5)
    lifted = splat.unproject(values, meta, normalize=None).values
    left, right = (colors * values).double().sum(), (scene["colors"] * lifted).double().sum()
    scale = (colors * values).abs().double().sum()
    assert (left - right).abs() <= 1e-5 * scale and left.abs() > 1e-3 * scale


@small
@pytest.mark.parametrize("channels", [1, 6])
def test_lifting_ones_gives_mass_and_count(channels):
    scene = random_scene(60, 40, 33, cameras=2)
    _, alphas, meta = rendered(scene)
    ones = torch.ones(*alphas.shape[:-1], channels)
    by_weight = splat.unproject(ones, meta, normalize=None)
    by_count = splat.unproject(ones, meta, mode="count", normalize=None)
    assert (by_weight.mass > 0).any() and torch.equal(by_weight.mass > 0, by_weight.count > 0)
    assert_near(by_weight.values, by_weight.mass[:, None].expand(-1, channels))
    expected = by_count.count[:, None].expand(-1, channels)
    assert torch.equal(by_count.values, expected.to(by_count.values.dtype))
    # What all Gaussians weigh is what covers the pixels.
    assert_near(by_weight.mass.sum(), alphas.sum())
    means = splat.unproject(ones, meta).values
    seen = by_weight.mass > 0
    assert_near(means[seen], torch.ones_like(means[seen]))
    assert (means[~seen] == 0).all()


@small
@modes
@pytest.mark.parametrize("channels", [3, 20])
def test_masked_pixels_contribute_nothing(mode, channels):
    scene = random_scene(40, 40, 33, cameras=2)
    _, alphas, meta = rendered(scene)
    values, mask = random_values(alphas, channels), random_mask(alphas)
    spoilt = torch.where(mask[..., None], values, torch.nan)
    plain = splat.unproject(values, meta, mode=mode, mask=mask)
    assert all(map(torch.equal, splat.unproject(spoilt, meta, mode=mode, mask=mask), plain))
    zeroed = torch.where(mask[..., None], values, 0)
    whole = splat.unproject(zeroed, meta, mode=mode, normalize=None)
    kept = splat.unproject(values, meta, mode=mode, normalize=None, mask=mask)
    assert_near(kept.values, whole.values)
    assert (kept.mass < whole.mass).any() and (kept.count <= whole.count).all()
    nothing = splat.unproject(values, meta, mode=mode, mask=torch.zeros_like(mask))
    assert all((x == 0).all() for x in nothing)


@small
@pytest.mark.parametrize("channels", [3, 20])
def test_not_a_number_reaches_only_who_sees_it(channels):
    scene = random_scene(40, 40, 33, size=(0.02, 0.1))
    _, alphas, meta = rendered(scene)
    values = random_values(alphas, channels)
    y, x = divmod(int(alphas[0, ..., 0].argmax()), 40)
    values[0, y, x] = torch.nan
    lifted = splat.unproject(values, meta).values.isnan().any(-1)
    at = splat.contributors(meta, 40).ids[0, y, x].long()
    expected = torch.zeros(40, dtype=torch.bool)
    expected[at[at >= 0]] = True
    assert expected.any() and not expected.all()
    assert torch.equal(lifted, expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("normalize", ["mass", "count", None])
@IMPLEMENTATIONS
def test_gradients(family, normalize, masked):
    scene = random_scene(4, 19, 9, size=(0.1, 0.4), dtype=torch.float64, cameras=2)
    _, alphas, meta = rendered(scene, family)
    mask = ~near_cuts(meta)
    if masked:
        mask &= random_mask(alphas)
    names = ("means2d", "conics", "opacities")
    values = random_values(alphas, 2)
    seen = meta["footprints"]
    inputs = [
        x.detach().clone().requires_grad_() for x in (values, *(getattr(seen, k) for k in names))
    ]

    def lift(values, *geometry):
        drawn = {"footprints": seen._replace(**dict(zip(names, geometry, strict=True)))}
        return family.unproject(values, drawn, normalize=normalize, mask=mask)[:2]

    for gradient in torch.autograd.grad(sum(x.sum() for x in lift(*inputs)), inputs):
        assert gradient.abs().max() > 1e-3
    assert torch.autograd.gradcheck(lift, inputs, atol=1e-6, rtol=1e-6)


@small
def test_gradient_to_values_is_the_rendering():
    scene = random_scene(40, 40, 33, cameras=2, channels=5)
    colors, alphas, meta = rendered(scene)
    values = random_values(alphas, 5).requires_grad_()
    lifted = splat.unproject(values, meta, normalize=None).values
    (gradient,) = torch.autograd.grad(lifted, values, scene["colors"])
    assert torch.equal(gradient, colors)


def test_no_gradient_in_mode_count():
    scene = random_scene(10, 20, 18)
    _, alphas, meta = rendered(scene)
    values = random_values(alphas, 2).requires_grad_()
    lifted = splat.unproject(values, meta, mode="count")
    with pytest.raises(NotImplementedError, match="^values: unproject has no gradient in mode"):
        lifted.values.sum().backward()
    seen = meta["footprints"]
    geometry = {
        k: getattr(seen, k).detach().requires_grad_() for k in ("means2d", "conics", "opacities")
    }
    lifted = splat.unproject(
        values.detach(), {"footprints": seen._replace(**geometry)}, mode="count", normalize=None
    )
    gradients = torch.autograd.grad(lifted.values.sum(), list(geometry.values()), allow_unused=True)
    assert gradients == (None,) * 3


@small
@modes
def test_lift_features_is_unproject_of_a_rendering(mode):
    scene = random_scene(20, 40, 33, cameras=2, batch=(2,))
    _, alphas, meta = rendered(scene)
    values, mask = random_values(alphas, 3), random_mask(alphas)
    names = ("means", "quats", "scales", "opacities", "viewmats", "Ks")
    options = {"mode": mode, "mask": mask, "per_view": True}
    lifted = splat.lift_features(values, *(scene[k] for k in names), **options)
    expected = splat.unproject(values, meta, **options)
    assert all(map(torch.equal, lifted, expected))


def test_lift_features_takes_covars_and_carries_gradients():
    scene = random_scene(20, 40, 33, covars=True, opacity=(0.3, 0.9))
    means = scene["means"].requires_grad_()
    views = (scene["opacities"], scene["viewmats"], scene["Ks"])
    values = random_values(torch.empty(1, 33, 40, 1), 3)
    lifted = splat.lift_features(values, means, None, None, *views, covars=scene["covars"])
    (gradient,) = torch.autograd.grad(lifted.values.sum(), means)
    assert gradient.abs().max() > 0
    exact = reference.lift_features(values, means, None, None, *views, covars=scene["covars"])
    assert (lifted.values - exact.values).norm() <= 1e-3 * exact.values.norm()


def test_bands_of_tiles_add_up():
    """More (tile, Gaussian) entries times channels than the buffer of 4 MB holds."""
    side, n, channels = 64, 1100, 400
    generator = torch.Generator().manual_seed(0)
    # Points on the corners of tiles: four tiles each, few pixels, so that the test stays cheap.
    corners = torch.randint(1, 4, (n, 2), generator=generator) * 16.0
    depths = 2 + torch.rand(n, 1, generator=generator)
    scene = lone_gaussian(
        side,
        side,
        float(side),
        n,
        means=torch.cat([(corners - side / 2 - 0.5) / side * depths, depths], -1),
        scales=torch.full((n, 3), 1e-3),
        opacities=0.01 + 0.1 * torch.rand(n, generator=generator),
    )
    _, alphas, meta = rendered(scene)
    assert len(meta["flatten_ids"]) * channels * 4 > 4 << 20
    values = random_values(alphas, 1)
    one = splat.unproject(values, meta)
    many = splat.unproject(values.expand(*values.shape[:-1], channels), meta)
    assert torch.equal(one.count, many.count)
    assert_near(many.mass, one.mass)
    assert_near(many.values, one.values.expand(-1, channels))


@pytest.mark.parametrize("isa", runtime.isas())
@modes
@pytest.mark.parametrize("channels", [2, 40])
def test_threads_give_the_same_bits(channels, mode, isa):
    scene = random_scene(1200, 70, 50, cameras=2, size=(0.01, 0.2))
    _, alphas, meta = rendered(scene)
    values = random_values(alphas, channels)
    results = []
    with runtime.use_isa(isa):
        for count in (1, 2, 4, 4):
            with runtime.use_threads(count):
                results.append(splat.unproject(values, meta, mode=mode, normalize=None))
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@small
@modes
@pytest.mark.parametrize("n", [0, 3])
def test_nothing_to_see(mode, n):
    scene = random_scene(n, 20, 18, cameras=2)
    scene["means"] = scene["means"] * torch.tensor([1.0, 1.0, -1.0])  # behind the cameras
    _, alphas, meta = rendered(scene)
    for channels in (1, 7):
        lifted = splat.unproject(random_values(alphas, channels), meta, mode=mode)
        assert lifted.values.shape == (n, channels) and lifted.mass.shape == (n,)
        assert all((x == 0).all() for x in lifted)
    cells = splat.unproject_cells(meta, 4, 5, mode=mode)
    assert (cells.lift(torch.ones(2, 4, 5, 3)) == 0).all()
    assert torch.equal(cells.render(torch.ones(n, 3)), torch.zeros(2, 4, 5, 3))
    behind = splat.contributors(meta, 2)
    assert (behind.ids == -1).all() and (behind.weights == 0).all() and (behind.count == 0).all()


def test_half_precision_under_autocast():
    scene = random_scene(10, 20, 18)
    _, alphas, meta = rendered(scene)
    values = random_values(alphas, 2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        lifted = splat.unproject(values, meta)
    assert torch.equal(lifted.values, splat.unproject(values.float(), meta).values)


def good():
    _, alphas, meta = rendered(random_scene(5, 20, 18, cameras=2))
    return {"values": random_values(alphas, 3), "meta": meta}


def without(meta, name):
    return {k: v for k, v in meta.items() if k != name}


BAD = {
    "mode": ({"mode": "mean"}, ValueError, "mode: expected one of 'weight', 'count', got 'mean'"),
    "normalize": ({"normalize": "sum"}, ValueError,
                  "normalize: expected one of 'mass', 'count', None, got 'sum'"),
    "values": ({"values": torch.zeros(2, 20, 18, 3)}, ValueError,
               "values: expected shape [2, 18, 20, 'D'] as the views of `meta`, "
               "got [2, 20, 18, 3]"),
    "values without channels": ({"values": torch.zeros(2, 18, 20)}, ValueError,
                                "values: expected shape [2, 18, 20, 'D'] as the views of `meta`, "
                                "got [2, 18, 20]"),
    "values in double": ({"values": torch.zeros(2, 18, 20, 3).double()}, TypeError,
                         "values: expected dtype torch.float32 like means2d, got torch.float64"),
    "another device": ({"values": torch.zeros(2, 18, 20, 3, device="meta")}, ValueError,
                       "values: expected device cpu like means2d, got meta"),
    "mask": ({"mask": torch.ones(18, 20, dtype=torch.bool)}, ValueError,
             "mask: expected shape [2, 18, 20] as the views of `meta`, got [18, 20]"),
    "mask of numbers": ({"mask": torch.ones(2, 18, 20)}, TypeError,
                        "mask: expected dtype torch.bool, got torch.float32"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_errors(case):
    changes, error, message = BAD[case]
    with pytest.raises(error) as caught:
        splat.unproject(**{**good(), **changes})
    assert str(caught.value).splitlines()[0] == message


def test_light_meta():
    arguments = good()
    arguments["meta"] = without(arguments["meta"], "footprints")
    with pytest.raises(ValueError, match="^meta: needs 'footprints'; pass the dict that"):
        splat.unproject(**arguments)
    with pytest.raises(ValueError, match="^meta: needs 'footprints'; pass the dict that"):
        splat.contributors(arguments["meta"], 1)


def test_values_of_lift_features():
    scene = random_scene(5, 20, 18)
    names = ("means", "quats", "scales", "opacities", "viewmats", "Ks")
    with pytest.raises(ValueError, match=r"^values: expected shape \[..., C, H, W, D\]"):
        splat.lift_features(torch.zeros(18, 20, 3), *(scene[k] for k in names))
