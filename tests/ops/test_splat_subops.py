"""gsplat's sub-ops with packed rows, in ranges, and with lists made by hand."""

import re

import pytest
import torch

from pyext.ops import splat
from tests.ops.splat_pairs import DENSE, FAINT, SIZE, accumulate, lists_of
from tests.ops.splat_scenes import near_cuts, random_scene, random_weights

TILES = (3, 3)
LEAVES = ("means", "quats", "scales", "covars", "opacities", "colors", "viewmats", "Ks")
small = pytest.mark.numerics_small


def leaves_of(scene):
    """Its tensors as gsplat's projection takes them: of covariances the upper triangle."""
    leaves = {k: scene[k] for k in LEAVES if scene[k] is not None}
    if "covars" in leaves:
        rows, columns = torch.triu_indices(3, 3)
        leaves["covars"] = leaves["covars"][..., rows, columns]
    return {k: v.detach().clone().requires_grad_() for k, v in leaves.items()}


def project(leaves, scene, **options):
    names = ("means", "covars", "quats", "scales", "viewmats", "Ks")
    size = scene["width"], scene["height"]
    return splat.fully_fused_projection(
        *(leaves.get(k) for k in names), *size, opacities=leaves["opacities"], **options
    )


def draw(leaves, scene, packed, **options):
    """From projection to pixels, joined from gsplat's sub-ops; colours, alphas and means2d."""
    batch, n = scene["means"].shape[:-2], scene["means"].shape[-2]
    images = (*batch, scene["viewmats"].shape[-3])
    projected = project(leaves, scene, packed=packed, calc_compensations=True)
    *ids, radii, means2d, depths, conics, rho = projected
    colors, opacities = leaves["colors"], leaves["opacities"]
    which = {}
    if packed:
        b, c, g = ids
        which = {"packed": True, "n_images": batch.numel() * images[-1], "gaussian_ids": g}
        which["image_ids"] = b * images[-1] + c
        colors, opacities = (x.reshape(batch.numel(), n, *x.shape[len(batch) + 1 :])[b, g]
                             for x in (colors, opacities))  # fmt: skip
    else:
        colors = colors.unsqueeze(-3).expand(*images, n, colors.shape[-1])
        opacities = opacities.unsqueeze(-2).expand(*images, n)
    counts, keys, flat = splat.isect_tiles(means2d, radii, depths, 16, *TILES, **which)
    offsets = splat.isect_offset_encode(keys, torch.Size(images).numel(), *TILES)
    out = splat.rasterize_to_pixels(
        means2d, conics, colors, opacities * rho, scene["width"], scene["height"], 16,
        offsets.reshape(*images, *TILES[::-1]), flat, backgrounds=scene["backgrounds"],
        packed=packed, **options,
    )  # fmt: skip
    return out, means2d, (counts, keys, flat, ids)


@small
@pytest.mark.parametrize("batch, cameras", [((), 1), ((), 3), ((2,), 2)])
@pytest.mark.parametrize("covars", [False, True])
def test_packed_rows_draw_what_dense_ones_do(batch, cameras, covars):
    scene = random_scene(41, *SIZE, batch=batch, cameras=cameras, covars=covars)
    scene["means"][..., ::4, 2] = -1  # behind all cameras: other numbers of rows
    found = []
    for packed in (False, True):
        leaves = leaves_of(scene)
        (colors, alphas), means2d, lists = draw(leaves, scene, packed, absgrad=True)
        means2d.retain_grad()
        loss = (colors * random_weights(colors).float()).sum() + alphas.square().sum()
        loss.backward()
        found.append((colors, alphas, means2d, lists, {k: v.grad for k, v in leaves.items()}))
    dense, packed = found
    assert torch.equal(packed[0], dense[0]) and torch.equal(packed[1], dense[1])
    b, c, g = packed[3][3]
    where = (*torch.unravel_index(b, batch), c, g) if batch else (c, g)
    assert torch.equal(packed[2], dense[2][where])
    assert torch.equal(packed[2].grad, dense[2].grad[where])
    assert torch.equal(packed[2].absgrad, dense[2].absgrad[where])
    assert (packed[2].absgrad >= 0.999 * packed[2].grad.abs()).all()
    assert packed[2].absgrad.max() > 0
    # Rows of packed tensors in the order they have in dense ones.
    assert torch.equal(packed[3][0], dense[3][0][where])
    assert torch.equal(packed[3][1], dense[3][1])
    place = (b * cameras + c) * 41 + g
    assert torch.equal(place[packed[3][2].long()].int(), dense[3][2])
    for name, want in dense[4].items():
        torch.testing.assert_close(packed[4][name], want, rtol=1e-5, atol=1e-6, msg=name)


def test_packed_rows_may_come_in_any_order():
    scene = random_scene(30, *SIZE, cameras=3)
    b, c, g, radii, means2d, depths, _, _ = project(leaves_of(scene), scene, packed=True)
    order = torch.randperm(len(g), generator=torch.Generator().manual_seed(0))
    results = []
    for rows in (torch.arange(len(g)), order):
        counts, keys, flat = splat.isect_tiles(
            means2d[rows], radii[rows], depths[rows], 16, *TILES, packed=True, n_images=3,
            image_ids=c[rows], gaussian_ids=g[rows],
        )  # fmt: skip
        results.append((counts[rows.argsort()], keys, rows[flat.long()]))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("n", [0, 5])
def test_no_packed_rows(n):
    scene = random_scene(n, *SIZE, cameras=2)
    scene["means"][:, 2] = -1
    (colors, alphas), means2d, (counts, keys, flat, _) = draw(leaves_of(scene), scene, True)
    assert means2d.shape == (0, 2) and counts.shape == keys.shape == flat.shape == (0,)
    assert (alphas == 0).all()
    assert torch.equal(colors, scene["backgrounds"][:, None, None].expand(2, 36, 40, 3))
    assert draw(leaves_of(scene), scene, False)[0][1].eq(0).all()


@pytest.mark.parametrize("covars", [False, True])
def test_sparse_gradients_of_the_projection(covars):
    scene = random_scene(20, *SIZE, cameras=2, covars=covars)
    scene["means"][::4, 2] = -1
    found = []
    for sparse in (False, True):
        leaves = leaves_of(scene)
        *ids, _, means2d, depths, conics, _ = project(
            leaves, scene, packed=True, sparse_grad=sparse
        )
        (means2d.square().sum() + depths.sum() + conics.square().sum()).backward()
        found.append((leaves, ids[2]))
    (dense, _), (sparse, seen) = found
    for name in ("means", "quats", "scales", "covars"):
        if name in sparse:
            assert sparse[name].grad.layout == torch.sparse_coo, name
            assert torch.equal(sparse[name].grad.coalesce().indices()[0], seen.unique()), name
            assert torch.equal(sparse[name].grad.to_dense(), dense[name].grad), name
    torch.testing.assert_close(sparse["viewmats"].grad, dense["viewmats"].grad)


# Ranges.


@pytest.mark.parametrize("options, step", [(FAINT, 1), (FAINT, 3), (FAINT, 10**10), (DENSE, 1e10)])
def test_accumulated_ranges_are_the_image(options, step):
    scene = random_scene(**options, width=40, height=36, seed=3)
    drawn, lists, (colors, alphas), meta = lists_of(scene)
    longest = int(torch.cat([lists[0].flatten(), torch.tensor([len(lists[1])])]).diff().max())
    assert (longest > 3 * 256) == (options is FAINT)
    rgb, shade = torch.zeros_like(colors), torch.zeros_like(alphas)
    calls = 0
    for first in range(0, -(-longest // 256), int(step)):
        found = splat.rasterize_to_indices_in_range(
            first, first + step, 1 - shade, *drawn[:3], *SIZE, 16, *lists
        )
        more, cover = accumulate(found, drawn, SIZE)
        rgb, shade = rgb + (1 - shade)[..., None] * more, shade + (1 - shade) * cover
        calls += 1
    assert calls == {1: -(-longest // 256), 3: 2}.get(step, 1)
    clear = ~near_cuts(meta)
    assert clear.double().mean() > 0.8 and (options is DENSE or alphas.max() < 0.9995)
    # A sum of a thousand float32 terms below one, twice.
    assert (shade - alphas)[clear].abs().max() < 2e-5
    assert (rgb - colors)[clear].abs().max() < 2e-5


def test_pairs_are_ordered_and_are_the_contributors():
    scene = random_scene(60, *SIZE, cameras=2, opacity=(0.5, 1.0))
    drawn, lists, (_, alphas), meta = lists_of(scene)
    found = splat.rasterize_to_indices_in_range(
        0, 10**9, torch.ones_like(alphas), *drawn[:3], *SIZE, 16, *lists
    )
    gaussians, pixels, images = found
    assert all(x.dtype == torch.int64 for x in found)
    flat = images * 40 * 36 + pixels
    assert (flat.diff() >= 0).all() and len(flat) > 1000
    depths = meta["depths"][images, gaussians]
    assert (depths.diff()[flat.diff() == 0] > 0).all()
    behind = splat.contributors(meta, 60)
    clear = ~near_cuts(meta)
    got = torch.bincount(flat, minlength=clear.numel()).reshape(clear.shape)
    assert torch.equal(got[clear], behind.count[clear].long())
    got = torch.zeros(*clear.shape, 60, dtype=torch.bool).reshape(-1, 60)
    got[flat, gaussians] = True
    want = torch.zeros_like(got).reshape(*clear.shape, 60)
    some = behind.ids >= 0
    want[(*some.nonzero().unbind(-1)[:-1], behind.ids[some].long())] = True
    assert torch.equal(got.reshape(want.shape)[clear], want[clear])


def test_pixels_that_have_ended_take_no_more():
    scene = random_scene(30, *SIZE)
    drawn, lists, (_, alphas), _ = lists_of(scene)
    left = torch.ones_like(alphas)
    left[:, :20] = 1e-4
    _, pixels, _ = splat.rasterize_to_indices_in_range(0, 1, left, *drawn[:3], *SIZE, 16, *lists)
    assert pixels.numel() and pixels.min() >= 20 * 40
    for first, last in ((0, 0), (1, 5), (2, 1)):
        beyond = splat.rasterize_to_indices_in_range(
            first, last, left, *drawn[:3], *SIZE, 16, *lists
        )
        assert all(x.shape == (0,) for x in beyond)


# Lists made by hand.

M = "the number of entries, got"
BAD = {
    "an id too large": (lambda o, i: (o, i.index_fill(0, i.new_tensor([3]).long(), 20)),
                        "flatten_ids: expected indices from 0 to below 20, got 0 to 20"),
    "a negative id": (lambda o, i: (o, i.index_fill(0, i.new_tensor([3]).long(), -7)),
                      "flatten_ids: expected indices from 0 to below 20, got -7 to "),
    "offsets that fall": (lambda o, i: (o.flatten().flip(0).reshape(o.shape), i),
                          "isect_offsets: expected offsets that rise from 0 to at most"),
    "an offset beyond the list": (lambda o, i: (o.clone().fill_(10**6).flatten().index_fill(
                                      0, torch.tensor([0]), 0).reshape(o.shape), i),
                                  rf"isect_offsets: .* {M} 1000000 before [0-9]+$"),
    "a negative offset": (lambda o, i: (o - 5, i), f"isect_offsets: .* {M} -5 first$"),
    "offsets that start late": (lambda o, i: (o + 1, i), f"isect_offsets: .* {M} 1 first$"),
    "offsets of another grid": (lambda o, i: (o[:, :2], i),
                                r"isect_offsets: expected shape \[1, 3, 3\], got \[1, 2, 3\]"),
    "ids in a table": (lambda o, i: (o, i[:, None]), r"flatten_ids: expected shape \[M\], got"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("function", ["pixels", "packed pixels", "indices"])
def test_lists_that_lead_outside_are_refused(function, case):
    scene = random_scene(20, *SIZE, opacity=(0.9, 1.0))
    (means2d, conics, opacities, colors), lists, (_, alphas), _ = lists_of(scene)
    spoil, message = BAD[case]
    lists = spoil(*lists)
    with pytest.raises(ValueError, match=f"^{message}"):
        if function == "indices":
            splat.rasterize_to_indices_in_range(
                0, 1, torch.ones_like(alphas), means2d, conics, opacities, *SIZE, 16, *lists
            )
        else:
            rows = (means2d, conics, colors, opacities)
            packed = function == "packed pixels"
            rows = [x[0] for x in rows] if packed else rows
            splat.rasterize_to_pixels(*rows, *SIZE, 16, *lists, packed=packed)


@pytest.mark.parametrize("changes, message", [
    ({"n_images": None}, "n_images: needed when packed, got None"),
    ({"image_ids": None}, "image_ids: needed when packed, got None"),
    ({"image_ids": torch.tensor([0, 2])},
     "image_ids: expected indices from 0 to below 2, got 0 to 2"),
    ({"image_ids": torch.tensor([0])}, "image_ids: expected shape [..., 2], got [1]"),
    ({"means2d": torch.ones(3, 2, 2)}, "means2d: expected packed rows, 2-d, got [3, 2, 2]"),
    ({"radii": torch.ones(2, 3, dtype=torch.int32)},
     "radii: expected shape [..., 2, 2], got [2, 3]"),
    ({"depths": torch.ones(3)}, "depths: expected shape [..., 2], got [3]"),
])  # fmt: skip
def test_packed_row_errors(changes, message):
    arguments = {"means2d": torch.ones(2, 2), "radii": torch.ones(2, 2, dtype=torch.int32)}
    arguments |= {"depths": torch.ones(2), "n_images": 2, "image_ids": torch.tensor([0, 1])}
    tiles = {"tile_size": 16, "tile_width": 1, "tile_height": 1, "packed": True}
    splat.isect_tiles(**arguments, **tiles)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        splat.isect_tiles(**arguments | changes, **tiles)


@pytest.mark.parametrize("packed", [False, True])
def test_masks_are_bool(packed):
    scene = random_scene(20, *SIZE)
    rows, lists, _, _ = lists_of(scene)
    means2d, conics, opacities, colors = (x[0] for x in rows) if packed else rows
    masks = torch.ones(1, 3, 3, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"^masks: expected dtype torch.bool, got torch.int32$"):
        splat.rasterize_to_pixels(
            means2d, conics, colors, opacities, *SIZE, 16, *lists, masks=masks, packed=packed
        )


@pytest.mark.parametrize("changes, message", [
    ({"packed": False}, "sparse_grad: needs packed=True, got packed=False"),
    ({"batch": (2,)}, "sparse_grad: expected means [N, 3] without batch dimensions, got [2, 5, 3]"),
])  # fmt: skip
def test_sparse_gradient_errors(changes, message):
    scene = random_scene(5, *SIZE, batch=changes.pop("batch", ()))
    options = {"packed": True, "sparse_grad": True} | changes
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        project(leaves_of(scene), scene, **options)
