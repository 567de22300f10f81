"""`rasterization` against the reference: image, alpha and every gradient."""

import pytest
import torch

from pyext.ops.splat import rasterization
from pyext.reference import splat as reference
from tests.ops.splat_agreement import both_dtypes, check_agreement
from tests.ops.splat_scenes import cast, near_cuts, random_scene, random_weights, run

ops = torch.ops.pyext
small = pytest.mark.numerics_small


SIZES = [(1, 1), (17, 23), (48, 33), (16, 32)]


@both_dtypes
@pytest.mark.parametrize("width, height", SIZES)
@pytest.mark.parametrize("n", [1, 7, 64])
def test_sizes(n, width, height, dtype):
    check_agreement(random_scene(n, width, height, dtype=dtype, seed=n + 12))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_gaussians(dtype):
    check_agreement(random_scene(300, 64, 48, dtype=dtype), masked=0.05)


@both_dtypes
@pytest.mark.parametrize("channels", [1, 2, 4, 5, 32, 100])
def test_channels(channels, dtype):
    check_agreement(random_scene(20, 23, 17, channels=channels, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [513, 1000])
def test_channels_beyond_gsplats(channels, dtype):
    check_agreement(random_scene(20, 23, 17, channels=channels, dtype=dtype))


@pytest.mark.parametrize("options", [{}, {"opacity": (0.6, 1.0)}, {"size": (0.01, 0.05)}])
def test_whole_image_by_mean_and_quantile(options):
    """No pixel is left out, those on a threshold are few: see `splat_agreement`."""
    scene = random_scene(400, 128, 96, cameras=2, **options)
    expected = run(reference.rasterization, cast(scene, torch.float64)).values()
    error = (run(rasterization, scene).values() - expected).detach().abs().flatten()
    report = {"mean": error.mean(), "99.9 %": error.quantile(0.999), "all": error.max()}
    for name, bound in (("mean", 1e-6), ("99.9 %", 1e-5), ("all", 5e-3)):
        assert report[name] <= bound, report


@both_dtypes
@pytest.mark.parametrize("batch, cameras", [((), 2), ((2,), 1), ((1, 2), 3), ((2,), 2)])
@pytest.mark.parametrize("per_camera", [False, True])
def test_batches_and_cameras(batch, cameras, per_camera, dtype):
    check_agreement(
        random_scene(
            9, 20, 18, batch=batch, cameras=cameras, per_camera=per_camera, dtype=dtype, seed=3
        )
    )


@both_dtypes
@pytest.mark.parametrize("batch, cameras", [((), 1), ((2,), 2)])
def test_covars(batch, cameras, dtype):
    check_agreement(
        random_scene(20, 23, 17, batch=batch, cameras=cameras, covars=True, dtype=dtype)
    )


@both_dtypes
def test_no_backgrounds(dtype):
    check_agreement(random_scene(20, 23, 17, backgrounds=False, dtype=dtype))


@small
def test_other_planes_clip_and_blur():
    scene = random_scene(40, 32, 32, size=(0.01, 0.2), seed=5)
    options = {"near_plane": 2.0, "far_plane": 3.5, "radius_clip": 4.0, "eps2d": 0.1}
    _, plain, _ = rasterization(**scene)
    _, alphas, _ = rasterization(**scene, **options)
    assert (plain - alphas).abs().max() > 0.1  # the options do something
    check_agreement(scene | options)


@both_dtypes
def test_opaque_gaussians_end_pixels_early(dtype):
    scene = random_scene(64, 32, 32, opacity=(0.9, 1.0), size=(0.3, 0.6), dtype=dtype, seed=2)
    scene["opacities"][::3] = 1
    _, alphas, _ = rasterization(**scene)
    assert ((1 - alphas) < 2e-4).double().mean() > 0.3
    check_agreement(scene, masked=0.1, flip=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("opacity, ends", [((0.004, 0.01), 0), ((0.015, 0.07), 0.8)])
def test_lists_of_many_segments(opacity, ends, dtype):
    """Two thousand Gaussians a tile; in the second case most pixels end on the way."""
    scene = random_scene(2200, 18, 16, opacity=opacity, size=(0.3, 0.6), dtype=dtype, seed=4)
    _, alphas, _ = rasterization(**scene)
    assert ((1 - alphas) < 1.2e-4).double().mean() >= ends
    check_agreement(scene, masked=0.2)


@small
def test_meta_agrees_and_carries_gradients():
    scene = random_scene(30, 33, 20, batch=(2,), cameras=2)
    exact = run(reference.rasterization, cast(scene, torch.float64))
    ours = run(rasterization, scene)
    assert ours.meta.keys() == exact.meta.keys()
    for name in ("n_batches", "n_cameras", "tile_width", "tile_height", "tile_size", "width"):
        assert ours.meta[name] == exact.meta[name]
    named = dict.fromkeys([*ours.meta, "tiles_per_gauss", "flatten_ids", "isect_ids"])
    whole = [ours.meta[name] for name in named]
    whole = [x for x in whole if isinstance(x, torch.Tensor) and not x.is_floating_point()]
    assert len(whole) == 5 and not any(x.requires_grad for x in whole)
    # Rounding may lift a radius over the next whole number.
    assert (ours.meta["radii"] - exact.meta["radii"]).abs().max() <= 1
    for name in ("means2d", "depths", "conics", "opacities"):
        # Far outside the image coordinates grow, and their roundings with them.
        torch.testing.assert_close(
            ours.meta[name].double(), exact.meta[name], atol=2e-5, rtol=2e-5, msg=name
        )

    def gradients(rendered):
        names = ("means", "quats", "scales", "viewmats")
        loss = sum(
            (rendered.meta[name] * random_weights(rendered.meta[name]).to(rendered.colors)).sum()
            for name in ("means2d", "depths", "conics")
        )
        return torch.autograd.grad(loss, [rendered.leaves[name] for name in names])

    for got, want in zip(gradients(ours), gradients(exact), strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


def projected(scene):
    """The arguments of `splat_bin` for one scene without batch."""
    _, _, meta = reference.rasterization(**scene)
    return [meta[k] for k in ("means2d", "radii", "depths", "conics", "opacities")] + [
        scene["width"], scene["height"], True
    ]  # fmt: skip


@small
def test_tile_lists_are_the_boxes_less_what_an_ellipse_misses():
    arguments = projected(random_scene(60, 48, 40, cameras=2, size=(0.01, 0.5), seed=6))
    offsets, ids, order, starts, positions = ops.splat_bin(*arguments)
    boxes = reference.bin(*arguments)
    assert torch.equal(order, boxes[2])
    assert len(ids) < len(boxes[1])
    for tile in range(len(offsets) - 1):
        kept = ids[offsets[tile] : offsets[tile + 1]]
        candidates = boxes[1][boxes[0][tile] : boxes[0][tile + 1]]
        assert torch.equal(candidates[torch.isin(candidates, kept)], kept)
    # The two listings, by tile and by Gaussian, are of the same entries.
    owners = torch.repeat_interleave(order, starts.diff())
    assert torch.equal(ids[positions.long()], owners)
    assert torch.equal(positions.sort().values, torch.arange(len(ids), dtype=torch.int32))
    for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        assert (positions[first:last].diff() > 0).all()


@small
def test_last_contributor():
    scene = random_scene(40, 33, 20, opacity=(0.5, 0.95), seed=7)
    means2d, radii, depths, conics, opacities, *size = projected(scene)
    lists = ops.splat_bin(means2d, radii, depths, conics, opacities, *size)
    arguments = [scene["colors"][None], *lists, *size[:2], 0.999, None]
    _, _, last = ops.splat_composite(means2d, conics, opacities, *arguments)
    _, _, expected = reference.composite(means2d, conics, opacities, *arguments)
    clear = ~near_cuts(reference.rasterization(**cast(scene, torch.float64))[2])
    assert last.dtype == torch.int32
    assert len(expected.unique()) > 20 and (expected == -1).any()
    assert torch.equal(last[clear], expected[clear])


def with_gaps(x):
    """The same numbers, every other element of a buffer full of not-a-number."""
    return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]


def transposed(x):
    return x.mT.contiguous().mT if x.dim() > 1 else x


@small
@pytest.mark.parametrize("stride", [with_gaps, transposed])
@pytest.mark.parametrize("covars", [False, True])
def test_strides_do_not_matter(stride, covars):
    scene = random_scene(12, 20, 17, batch=(2,), cameras=2, covars=covars)
    other = {k: stride(v) if isinstance(v, torch.Tensor) else v for k, v in scene.items()}
    assert not other["colors"].is_contiguous()
    plain, strided = run(rasterization, scene), run(rasterization, other)
    assert torch.equal(plain.values(), strided.values())
    weights = random_weights(plain.values())
    expected, actual = plain.gradients(weights), strided.gradients(stride(weights))
    # torch itself sums the gradient of the backgrounds, in an order that follows the strides.
    torch.testing.assert_close(actual.pop("backgrounds"), expected.pop("backgrounds"))
    for name, want in expected.items():
        assert torch.equal(actual[name], want), name


@small
def test_expanded_inputs_and_upstream_gradients():
    scene = random_scene(12, 20, 17, cameras=2)
    scene["colors"] = scene["colors"][:1].expand(12, 3)
    scene["viewmats"] = scene["viewmats"][:1].expand(2, 4, 4)
    plain = run(rasterization, {**scene, "colors": scene["colors"].contiguous()})
    expanded = run(rasterization, scene)
    assert torch.equal(plain.values(), expanded.values())
    for name, want in plain.gradients(torch.ones_like(plain.values())).items():
        leaf = expanded.leaves[name]
        # The gradient of a sum comes in as one number, expanded.
        (got,) = torch.autograd.grad(expanded.values().sum(), leaf, retain_graph=True)
        assert torch.equal(got, want), name
