"""Against what gsplat has in plain PyTorch: the oracle of its own tests.

In float64, where both round alike to 1e-12 of the terms, and only sums cancel; the rasterizer in
float32, where a sum of up to a thousand terms below one has 1e-5.
"""

import sys
import types

import pytest
import torch

from pyext.ops import splat
from tests.ops.splat_pairs import DENSE, FAINT, SIZE, lists_of, weights_of
from tests.ops.splat_scenes import near_cuts, random_scene, random_weights

pytest.importorskip("gsplat")
from gsplat.cuda import _torch_impl, _wrapper  # noqa: E402


@pytest.mark.parametrize("model", ["pinhole", "ortho"])
@pytest.mark.parametrize("batch, cameras", [((), 1), ((2,), 3)])
def test_projection(batch, cameras, model):
    scene = random_scene(200, *SIZE, batch=batch, cameras=cameras, dtype=torch.float64)
    scene["means"][..., ::5, :2] *= 2  # beyond the edges, where slopes are clamped
    if model == "ortho":
        scene["Ks"][..., [0, 1], [0, 1]] /= 2.5
    names = ("means", "quats", "scales", "viewmats")
    results = []
    for ours in (True, False):
        leaves = {k: scene[k].clone().requires_grad_() for k in names}
        means, quats, scales, viewmats = leaves.values()
        options = {"calc_compensations": True, "camera_model": model}
        if ours:
            projected = splat.fully_fused_projection(
                means, None, quats, scales, viewmats, scene["Ks"], *SIZE, **options
            )
        else:
            covars, _ = _torch_impl._quat_scale_to_covar_preci(quats, scales, compute_preci=False)
            projected = _torch_impl._fully_fused_projection(
                means, covars, viewmats, scene["Ks"], *SIZE, **options
            )
        seen = (projected[0] > 0).all(-1)
        values = [x[seen] for x in projected[1:]]
        loss = sum((x * random_weights(x)).sum() for x in values)
        results.append((projected[0], values, torch.autograd.grad(loss, list(leaves.values()))))
    (radii, values, gradients), (their_radii, their_values, their_gradients) = results
    # What is outside by one axis alone keeps a radius there, in gsplat; it is culled all the same.
    seen = (their_radii > 0).all(-1, keepdim=True)
    assert 0.3 < seen.double().mean() < 1
    assert torch.equal(radii, their_radii * seen)
    for got, want in zip(values, their_values, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    for name, got, want in zip(names, gradients, their_gradients, strict=True):
        if name == "viewmats":  # the bottom row is no argument of ours
            got, want = got[..., :3, :], want[..., :3, :]
        assert (got - want).norm() <= 1e-5 * want.norm(), name


def test_tiles():
    scene = random_scene(40, *SIZE, cameras=2, size=(0.02, 0.3))
    names = ("means", "covars", "quats", "scales", "viewmats", "Ks")
    radii, means2d, depths, _, _ = splat.fully_fused_projection(*(scene[k] for k in names), *SIZE)
    got = splat.isect_tiles(means2d, radii, depths, 16, 3, 3)
    want = _torch_impl._isect_tiles(means2d, radii, depths, 16, 3, 3)
    assert len(want[1]) > 100 and all(map(torch.equal, got, want))
    offsets = splat.isect_offset_encode(got[1], 2, 3, 3)
    assert torch.equal(offsets, _torch_impl._isect_offset_encode(want[1], 2, 3, 3))


@pytest.mark.parametrize("triu", [False, True])
def test_covariances_and_precisions(triu):
    generator = torch.Generator().manual_seed(0)
    quats = torch.randn(5, 7, 4, generator=generator, dtype=torch.float64)
    scales = 0.1 + torch.rand(5, 7, 3, generator=generator, dtype=torch.float64)
    got = splat.quat_scale_to_covar_preci(quats, scales, triu=triu)
    want = _torch_impl._quat_scale_to_covar_preci(quats, scales, triu=triu)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("degree", range(5))
def test_harmonics(degree):
    generator = torch.Generator().manual_seed(0)
    results = []
    for function in (splat.spherical_harmonics, _torch_impl._spherical_harmonics):
        generator.manual_seed(0)
        dirs = torch.randn(50, 3, generator=generator, dtype=torch.float64).requires_grad_()
        coeffs = torch.randn(50, 25, 3, generator=generator, dtype=torch.float64).requires_grad_()
        out = function(degree, dirs, coeffs)
        loss = (out * random_weights(out)).sum()
        found = torch.autograd.grad(loss, (dirs, coeffs), materialize_grads=True, allow_unused=True)
        results.append((out, *found))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [FAINT, DENSE])
def test_rasterizer_on_our_pairs(options, monkeypatch):
    """It has the pairs from gsplat's CUDA extension, and sums along rays from nerfacc."""

    def along_rays(weights, values, ray_indices, n_rays):
        values = weights[:, None] * (1 if values is None else values)
        return values.new_zeros(n_rays, values.shape[1]).index_add(0, ray_indices, values)

    nerfacc = types.ModuleType("nerfacc")
    nerfacc.accumulate_along_rays = along_rays
    nerfacc.render_weight_from_alpha = lambda alphas, ray_indices, n_rays: (
        weights_of(alphas, ray_indices, n_rays),
        None,
    )
    monkeypatch.setitem(sys.modules, "nerfacc", nerfacc)
    monkeypatch.setattr(
        _wrapper, "rasterize_to_indices_in_range", splat.rasterize_to_indices_in_range
    )
    scene = random_scene(**options, width=40, height=36, seed=3)
    drawn, lists, _, meta = lists_of(scene)
    leaves = [x.detach().clone().requires_grad_() for x in drawn]
    means2d, conics, opacities, colors = leaves
    arguments = means2d, conics, colors, opacities, *SIZE, 16, *lists, scene["backgrounds"]
    clear = ~near_cuts(meta)[..., None]
    results = []
    for function in (_torch_impl._rasterize_to_pixels, splat.rasterize_to_pixels):
        rgb, alphas = function(*arguments)
        values = torch.cat([rgb, alphas], -1)
        loss = (values * clear * random_weights(values)).sum()
        results.append((values, torch.autograd.grad(loss, leaves)))
    (theirs, wanted), (ours, got) = results
    assert ((ours - theirs) * clear).abs().max() < 2e-5
    for name, a, b in zip(("means2d", "conics", "opacities", "colors"), got, wanted, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm(), name
