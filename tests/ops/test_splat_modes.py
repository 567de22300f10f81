"""The options of `rasterization`: harmonics, depth, antialiasing, cameras, dialects."""

import re

import pytest
import torch

from pyext.ops import splat
from pyext.reference import splat as reference
from tests.ops.splat_agreement import both_dtypes, check_agreement, small
from tests.ops.splat_scenes import cast, lone_gaussian, random_scene


def with_harmonics(scene, degree, channels=3, per_camera=False, seed=3):
    """The scene with coefficients of one degree more than is asked for, where there is one."""
    generator = torch.Generator().manual_seed(seed)
    cameras = scene["viewmats"].shape[-3]
    K = (min(degree + 1, 4) + 1) ** 2
    dims = (*scene["means"].shape[:-2], *((cameras,) if per_camera else ()))
    coefficients = torch.randn(
        *dims, scene["means"].shape[-2], K, channels, generator=generator, dtype=torch.float64
    )
    return scene | {
        "colors": 0.4 * coefficients.to(scene["means"].dtype),
        "sh_degree": degree,
        "backgrounds": None,
    }


@both_dtypes
@pytest.mark.parametrize("per_camera", [False, True])
@pytest.mark.parametrize("degree", range(5))
def test_harmonics(degree, per_camera, dtype):
    scene = random_scene(12, 22, 18, cameras=2, dtype=dtype)
    check_agreement(with_harmonics(scene, degree, per_camera=per_camera), scale=4)


def test_harmonics_shared_by_a_batch():
    scene = with_harmonics(random_scene(6, 20, 18, batch=(2,)), 2)
    shared = scene | {"colors": scene["colors"][0]}
    repeated = scene | {"colors": scene["colors"][:1].expand(2, -1, -1, -1)}
    assert torch.equal(splat.rasterization(**shared)[0], splat.rasterization(**repeated)[0])


MODES = ["RGB", "D", "ED", "RGB+D", "RGB+ED"]


@both_dtypes
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backgrounds", [True, False])
def test_depth_modes(mode, backgrounds, dtype):
    scene = random_scene(12, 22, 18, cameras=2, backgrounds=backgrounds, dtype=dtype)
    # Depths are up to 4; expected ones are divided by alphas down to 1/255.
    ours = check_agreement(scene | {"render_mode": mode}, scale=1000 if "ED" in mode else 4)
    assert ours.colors.shape[-1] == {"RGB": 3, "D": 1, "ED": 1, "RGB+D": 4, "RGB+ED": 4}[mode]


def test_expected_depth_of_one_gaussian_is_its_depth():
    scene = lone_gaussian() | {"render_mode": "RGB+ED"}
    colors, alphas, _ = splat.rasterization(**scene)
    seen = alphas[..., 0] > 0
    torch.testing.assert_close(
        colors[..., -1][seen], torch.full_like(colors[..., -1][seen], 2.0), rtol=1e-5, atol=0
    )


@both_dtypes
@pytest.mark.parametrize("compat", ["gsplat-1.5", "gsplat-main"])
def test_antialiased(compat, dtype):
    scene = random_scene(14, 24, 20, cameras=2, size=(0.02, 0.2), dtype=dtype)
    scene |= {"compat": compat}
    check_agreement(scene | {"rasterize_mode": "antialiased"}, scale=10)
    _, classic, _ = splat.rasterization(**scene)
    _, fainter, _ = splat.rasterization(**scene, rasterize_mode="antialiased")
    assert fainter.mean() < classic.mean()


@both_dtypes
def test_orthographic(dtype):
    scene = random_scene(10, 24, 20, cameras=2, dtype=dtype)
    scene["Ks"] = scene["Ks"].clone()
    scene["Ks"][..., [0, 1], [0, 1]] /= 2.5  # pixels a unit, at no distance in particular
    check_agreement(scene | {"camera_model": "ortho"})


@both_dtypes
def test_inria_dialect(dtype):
    check_agreement(random_scene(14, 24, 20, cameras=2, dtype=dtype) | {"compat": "inria"})
    _, _, meta = splat.rasterization(**random_scene(14, 24, 20) | {"compat": "inria"})
    assert torch.equal(meta["radii"][..., 0], meta["radii"][..., 1])
    with pytest.raises(ValueError, match="^rasterize_mode: 'inria' has no 'antialiased' mode"):
        splat.rasterization(**random_scene(3, 9, 9), compat="inria", rasterize_mode="antialiased")


@pytest.mark.parametrize("compat, most", [("gsplat-1.5", 0.999), ("gsplat-main", 0.99)])
def test_alpha_ends_where_the_dialect_says(compat, most):
    scene = lone_gaussian() | {"compat": compat, "opacities": torch.ones(1)}
    _, alphas, _ = splat.rasterization(**scene)
    assert float(alphas.max()) == pytest.approx(most, abs=1e-6)


@small
def test_boxes_instead_of_ellipses_change_no_pixel():
    scene = random_scene(60, 48, 40, size=(0.01, 0.5), seed=6)
    exact, boxes = (splat.rasterization(**scene, exact_tiles=x) for x in (True, False))
    assert torch.equal(exact[0], boxes[0])
    assert len(exact[2]["flatten_ids"]) < len(boxes[2]["flatten_ids"])


@small
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("channels", [3, 7])
def test_absgrad(packed, channels):
    scene = random_scene(12, 24, 20, cameras=2, channels=channels) | {"packed": packed}
    found = []
    for rasterization, dtype in ((splat.rasterization, torch.float32),
                                 (reference.rasterization, torch.float64)):  # fmt: skip
        inputs = cast(scene, dtype)
        inputs["means"] = inputs["means"].requires_grad_()
        colors, _, meta = rasterization(**inputs, absgrad=True)
        meta["means2d"].retain_grad()
        colors.square().sum().backward()
        assert meta["means2d"].absgrad.shape == meta["means2d"].shape
        assert (meta["means2d"].absgrad + 1e-6 >= meta["means2d"].grad.abs()).all()
        found.append(meta["means2d"].absgrad.double())
    assert (found[0] - found[1]).norm() <= 1e-4 * found[1].norm()


def test_packed_rows_are_the_visible_ones():
    scene = random_scene(30, 24, 20, cameras=2)
    scene["means"][::3, 2] = -1  # behind both cameras
    dense = splat.rasterization(**scene)
    packed = splat.rasterization(**scene | {"packed": True})
    assert torch.equal(dense[0], packed[0]) and torch.equal(dense[1], packed[1])
    rows = packed[2]["camera_ids"], packed[2]["gaussian_ids"]
    assert packed[2]["batch_ids"].eq(0).all()
    assert torch.equal((dense[2]["radii"] > 0).all(-1).nonzero().T, torch.stack(rows))
    for name in ("radii", "means2d", "depths", "conics", "opacities", "tiles_per_gauss"):
        assert torch.equal(dense[2][name][rows], packed[2][name]), name
    place = rows[0] * 30 + rows[1]
    assert torch.equal(place[packed[2]["flatten_ids"].long()].int(), dense[2]["flatten_ids"])
    assert torch.equal(dense[2]["isect_ids"], packed[2]["isect_ids"])


@pytest.mark.parametrize("packed", [True, False])
def test_gradients_pass_through_means2d(packed):
    scene = random_scene(12, 24, 20) | {"packed": packed}
    scene["means"] = scene["means"].requires_grad_()
    colors, _, meta = splat.rasterization(**scene)
    meta["means2d"].retain_grad()
    colors.sum().backward()
    assert not meta["means2d"].is_leaf
    assert meta["means2d"].grad.abs().max() > 0


def test_sparse_gradients_are_rows_of_dense_ones():
    scene = random_scene(20, 24, 20, cameras=2)
    scene["means"][::4, 2] = -1
    found = []
    for sparse in (False, True):
        leaves = {k: scene[k].clone().requires_grad_() for k in ("means", "quats", "scales")}
        colors, _, meta = splat.rasterization(
            **scene | leaves | {"packed": True}, sparse_grad=sparse
        )
        colors.square().sum().backward()
        found.append(leaves)
    for name, dense in found[0].items():
        got = found[1][name].grad
        assert got.layout == torch.sparse_coo
        assert torch.equal(got.to_dense(), dense.grad)
        assert torch.equal(got.coalesce().indices()[0], meta["gaussian_ids"].unique())


def test_light_meta_holds_no_tensor():
    scene = random_scene(12, 24, 20, cameras=2)
    full, light = splat.rasterization(**scene), splat.rasterization(**scene, meta="light")
    assert torch.equal(full[0], light[0])
    assert not any(isinstance(value, torch.Tensor) for value in light[2].values())
    assert all(full[2][name] == value for name, value in light[2].items())


def test_meta_has_gsplats_entries():
    _, _, meta = splat.rasterization(**random_scene(12, 24, 20))
    for name in ("batch_ids", "camera_ids", "gaussian_ids", "radii", "means2d", "depths", "conics",
                 "opacities", "tile_width", "tile_height", "tiles_per_gauss", "isect_ids",
                 "flatten_ids", "isect_offsets", "width", "height", "tile_size", "n_batches",
                 "n_cameras"):  # fmt: skip
        meta[name]
    with pytest.raises(KeyError, match="no_such"):
        meta["no_such"]


WRONG = {
    "means": ("means", lambda x: x.index_fill_(0, torch.tensor([2]), torch.nan),
              "means: 3 values are not finite, the first at [2, 0]"),
    "opacities": ("opacities", lambda x: x.mul_(10), "opacities: expected values in [0, 1], got"),
    "scales": ("scales", lambda x: x.neg_(), "scales: expected positive values, got -"),
    "viewmats": ("viewmats", lambda x: x.fill_(torch.inf), "viewmats: 16 values are not finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_check_finite(case):
    name, spoil, message = WRONG[case]
    scene = random_scene(5, 20, 18)
    splat.rasterization(**scene, check_finite=True)
    scene[name] = spoil(scene[name].clone())
    with pytest.raises(ValueError) as caught:
        splat.rasterization(**scene, check_finite=True)
    assert str(caught.value).startswith(message)


def test_values_are_not_looked_at_unless_asked():
    scene = lone_gaussian() | {"opacities": torch.tensor([7.0])}
    _, alphas, _ = splat.rasterization(**scene)
    assert float(alphas.max()) == pytest.approx(0.999)


def test_a_matrix_that_is_no_cameras_warns():
    scene = random_scene(5, 20, 18)
    expected, _, _ = splat.rasterization(**scene)
    scene["viewmats"] = scene["viewmats"].clone()
    scene["viewmats"][..., 3, :] = torch.tensor([0.5, 0, 0, 1])
    message = (
        "viewmats: the bottom row of a world-to-camera matrix is 0 0 0 1, got [0.5, 0.0, 0.0, 1.0];"
        " only the top three rows are used"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$") as caught:
        colors, _, _ = splat.rasterization(**scene)
    assert torch.equal(colors, expected) and caught[0].filename == __file__


@pytest.mark.parametrize("changes, message", [
    ({"sh_degree": 5}, "sh_degree: expected 0 to 4, got 5"),
    ({"sh_degree": 1, "colors": torch.zeros(5, 3, 3)}, 
     "colors: degree 1 needs 4 coefficients [..., N, K, D], got [5, 3, 3]"),
    ({"sparse_grad": True}, "sparse_grad: needs packed=True, got packed=False"),
    ({"compat": "gsplat-2"}, "compat: expected one of gsplat-1.5, gsplat-main, inria, got"),
    ({"meta": "none"}, "meta: expected one of full, light, got 'none'"),
])  # fmt: skip
def test_errors(changes, message):
    with pytest.raises(ValueError) as caught:
        splat.rasterization(**random_scene(5, 20, 18) | changes)
    assert str(caught.value).startswith(message)
