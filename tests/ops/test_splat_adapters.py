"""gsplat's sub-ops and Inria's interface."""

import pytest
import torch

from pyext.adapters.diff_gaussian_rasterization import (
    GaussianRasterizationSettings,
    GaussianRasterizer,
)
from pyext.ops import splat
from pyext.reference import splat_sh
from tests.ops.splat_scenes import random_scene


def by_hand(scene, masks=None):
    """What `rasterization` does, joined from gsplat's sub-ops."""
    names = ("means", "covars", "quats", "scales", "viewmats", "Ks")
    size = scene["width"], scene["height"]
    radii, means2d, depths, conics, _ = splat.fully_fused_projection(
        *(scene[k] for k in names), *size, opacities=scene["opacities"]
    )
    tiles_x, tiles_y = -(-size[0] // 16), -(-size[1] // 16)
    _, keys, ids = splat.isect_tiles(means2d, radii, depths, 16, tiles_x, tiles_y)
    images = means2d.shape[0]
    offsets = splat.isect_offset_encode(keys, images, tiles_x, tiles_y)
    expand = lambda x: x.expand(images, *x.shape)  # noqa: E731
    return splat.rasterize_to_pixels(
        means2d, conics, expand(scene["colors"]), expand(scene["opacities"]), *size, 16, offsets,
        ids, backgrounds=scene["backgrounds"], masks=masks,
    )  # fmt: skip


def test_sub_ops_give_what_rasterization_gives():
    scene = random_scene(40, 40, 36, cameras=2)
    scene["means"] = scene["means"].requires_grad_()
    whole, joined = splat.rasterization(**scene), by_hand(scene)
    assert torch.equal(whole[0], joined[0]) and torch.equal(whole[1], joined[1])
    expected, actual = (torch.autograd.grad(x[0].square().sum(), scene["means"])[0]
                        for x in (whole, joined))  # fmt: skip
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_sub_op_keys_and_offsets_are_gsplats():
    scene = random_scene(30, 40, 36, cameras=2)
    _, _, meta = splat.rasterization(**scene, exact_tiles=False)
    tiles = meta["tile_width"], meta["tile_height"]
    counts, keys, ids = splat.isect_tiles(
        *(meta[k] for k in ("means2d", "radii", "depths")), 16, *tiles
    )
    assert torch.equal(counts, meta["tiles_per_gauss"])
    assert torch.equal(keys, meta["isect_ids"]) and torch.equal(keys, keys.sort().values)
    assert torch.equal(ids, meta["flatten_ids"])
    offsets = splat.isect_offset_encode(keys, 2, *tiles)
    assert torch.equal(offsets, meta["isect_offsets"])
    depths = meta["depths"].flatten()[ids.long()]
    assert torch.equal((keys & 0xFFFFFFFF).int(), depths.view(torch.int32))


def test_masked_tiles_show_the_background():
    scene = random_scene(40, 40, 36)
    masks = torch.ones(1, 3, 3, dtype=torch.bool)
    masks[0, 1, 2] = False
    colors, alphas = by_hand(scene, masks)
    whole, _, _ = splat.rasterization(**scene)
    assert alphas[0, 16:32, 32:].eq(0).all()
    background = scene["backgrounds"][0].expand_as(colors[0, 16:32, 32:])
    torch.testing.assert_close(colors[0, 16:32, 32:], background)
    assert torch.equal(colors[0, :16], whole[0, :16])


def test_packed_projection():
    scene = random_scene(20, 24, 20, cameras=2)
    arguments = [scene[k] for k in ("means", "covars", "quats", "scales", "viewmats", "Ks")]
    dense = splat.fully_fused_projection(*arguments, 24, 20, calc_compensations=True)
    packed = splat.fully_fused_projection(*arguments, 24, 20, packed=True, calc_compensations=True)
    where = (dense[0] > 0).all(-1).nonzero().unbind(-1)
    assert all(map(torch.equal, packed[1:3], where))
    for whole, rows in zip(dense, packed[3:], strict=True):
        assert torch.equal(whole[where], rows)


def test_covariances_and_precisions():
    generator = torch.Generator().manual_seed(0)
    quats, scales = torch.randn(7, 4, generator=generator), torch.rand(7, 3, generator=generator)
    covars, precis = splat.quat_scale_to_covar_preci(quats, scales + 0.2)
    torch.testing.assert_close(covars @ precis, torch.eye(3).expand(7, 3, 3), atol=1e-4, rtol=0)
    upper, nothing = splat.quat_scale_to_covar_preci(
        quats, scales + 0.2, compute_preci=False, triu=True
    )
    assert nothing is None
    torch.testing.assert_close(upper[:, [0, 1, 2]], covars[:, 0])


def test_harmonics_alone():
    generator = torch.Generator().manual_seed(0)
    dirs, coeffs = (torch.randn(*s, generator=generator) for s in ((4, 5, 3), (4, 5, 16, 3)))
    masks = torch.rand(4, 5, generator=generator) < 0.5
    got = splat.spherical_harmonics(3, dirs, coeffs, masks)
    want = splat_sh.spherical_harmonics(3, dirs, coeffs) * masks.unsqueeze(-1)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("call, message", [
    (lambda: splat.spherical_harmonics(1, torch.zeros(3, 2), torch.zeros(3, 4, 3)),
     "dirs: expected shape [..., 3], got [3, 2]"),
    (lambda: splat.spherical_harmonics(1, torch.zeros(3, 3), torch.zeros(2, 4, 3)),
     "coeffs: expected [3] before [K, D] like dirs, got [2, 4, 3]"),
    (lambda: splat.quat_scale_to_covar_preci(torch.zeros(3), torch.zeros(3)),
     "quats: expected shape [..., 4], got [3]"),
])  # fmt: skip
def test_sub_op_errors(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message


def inria(scene, means2d, **changes):
    width, height = scene["width"], scene["height"]
    K = scene["Ks"][0]
    settings = GaussianRasterizationSettings(
        image_height=height,
        image_width=width,
        tanfovx=float(width / (2 * K[0, 0])),
        tanfovy=float(height / (2 * K[1, 1])),
        bg=scene["backgrounds"][0],
        scale_modifier=1.0,
        viewmatrix=scene["viewmats"][0].mT,
        projmatrix=torch.eye(4),
        sh_degree=2,
        campos=torch.linalg.inv(scene["viewmats"][0])[:3, 3],
    )
    arguments = {
        "means3D": scene["means"], "means2D": means2d, "opacities": scene["opacities"][:, None],
        "colors_precomp": scene["colors"], "scales": scene["scales"], "rotations": scene["quats"],
    } | changes  # fmt: skip
    return GaussianRasterizer(settings)(**arguments)


def centred(scene):
    """Inria's camera has its principal point in the middle."""
    scene["Ks"] = scene["Ks"].clone()
    scene["Ks"][..., 0, 2], scene["Ks"][..., 1, 2] = scene["width"] / 2, scene["height"] / 2
    return scene


def test_inrias_interface():
    scene = centred(random_scene(30, 40, 36))
    scene["means"] = scene["means"].requires_grad_()
    points = torch.zeros(30, 3, requires_grad=True)
    color, radii, depth = inria(scene, points)
    colors, _, meta = splat.rasterization(
        **scene, compat="inria", near_plane=0.2, render_mode="RGB+D"
    )
    torch.testing.assert_close(color, colors[0, ..., :3].permute(2, 0, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(depth[0], colors[0, ..., 3], rtol=1e-5, atol=1e-5)
    assert torch.equal(radii, meta["radii"][0].amax(-1))
    meta["means2d"].retain_grad()
    color.square().sum().backward()
    colors[..., :3].square().sum().backward()
    half = torch.tensor([20.0, 18.0])
    torch.testing.assert_close(
        points.grad[:, :2], meta["means2d"].grad[0] * half, rtol=1e-4, atol=1e-3
    )


def test_inrias_interface_takes_harmonics_and_covariances():
    scene = centred(random_scene(30, 40, 36))
    generator = torch.Generator().manual_seed(0)
    shs = 0.3 * torch.randn(30, 9, 3, generator=generator)
    color, _, _ = inria(scene, torch.zeros(30, 3), colors_precomp=None, shs=shs)
    expected, _, _ = splat.rasterization(
        **scene | {"colors": shs}, sh_degree=2, compat="inria", near_plane=0.2
    )
    torch.testing.assert_close(color, expected[0].permute(2, 0, 1), rtol=1e-4, atol=1e-4)
    upper, _ = splat.quat_scale_to_covar_preci(scene["quats"], scene["scales"], triu=True)
    plain, _, _ = inria(scene, torch.zeros(30, 3))
    again, _, _ = inria(scene, torch.zeros(30, 3), scales=None, rotations=None, cov3D_precomp=upper)
    torch.testing.assert_close(again, plain, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="^shs, colors_precomp: expected exactly one"):
        inria(scene, torch.zeros(30, 3), shs=shs)
