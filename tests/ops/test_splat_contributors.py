"""The Gaussians behind each pixel, against the reference and against what rendering says."""

import pytest
import torch

from pyext import runtime
from pyext.ops import splat
from pyext.reference import splat as reference
from tests.ops.splat_scenes import cast, lone_gaussian, near_cuts, random_scene

small = pytest.mark.numerics_small


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=small), torch.float64], ids=["float32", "float64"]
)
@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("batch, cameras", [((), 1), ((2,), 2)])
def test_agreement(k, batch, cameras, dtype):
    scene = random_scene(40, 37, 21, batch=batch, cameras=cameras, dtype=dtype, seed=5)
    got = splat.contributors(splat.rasterization(**scene)[2], k)
    _, _, exact = reference.rasterization(**cast(scene, torch.float64))
    want = reference.contributors(exact, k)
    clear = ~near_cuts(exact)
    assert got.ids.dtype == got.count.dtype == torch.int32 and got.ids.shape == want.ids.shape
    assert want.count.max() >= 3 and torch.equal(got.count[clear], want.count[clear])
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    assert (got.weights - want.weights)[clear].abs().max() <= bound
    # Weights that are all but equal may come in either order.
    apart = (want.weights.diff(dim=-1).abs() > 10 * bound) | (want.weights[..., 1:] == 0)
    distinct = clear & apart.all(-1)
    if k == 1:
        distinct &= (reference.contributors(exact, 2).weights.diff(dim=-1).abs() > 1e-4)[..., 0]
    assert distinct.double().mean() > 0.5 * clear.double().mean()
    assert torch.equal(got.ids[distinct], want.ids[distinct])


@small
def test_weights_add_up_to_alpha():
    scene = random_scene(40, 37, 21, cameras=2)
    _, alphas, meta = splat.rasterization(**scene)
    behind = splat.contributors(meta, 40)
    assert (behind.weights.sum(-1) - alphas[..., 0]).abs().max() <= 2e-6
    assert torch.equal((behind.ids >= 0).sum(-1, dtype=torch.int32), behind.count)
    assert torch.equal(behind.ids >= 0, behind.weights > 0)
    assert (behind.weights.diff(dim=-1) <= 0).all()
    fewer = splat.contributors(meta, 3)
    assert torch.equal(fewer.ids, behind.ids[..., :3])
    assert torch.equal(fewer.weights, behind.weights[..., :3])
    assert torch.equal(fewer.count, behind.count)


@small
@pytest.mark.parametrize("behind, order", [(1.0, [1, 0]), (0.3, [1, 0]), (0.9, [0, 1])])
def test_weight_decides_not_depth(behind, order):
    """In front an alpha of 0.5, or of 0.2: behind it are 0.4995, 0.15 and 0.72."""
    front = 0.2 if behind == 0.9 else 0.5
    scene = lone_gaussian(
        n=2,
        means=torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 2.0]]),
        opacities=torch.tensor([behind, front]),
    )
    _, _, meta = splat.rasterization(**scene)
    contributors = splat.contributors(meta, 3)
    assert contributors.ids[0, 16, 16].tolist() == [*order, -1]
    assert contributors.count[0, 16, 16] == 2


@pytest.mark.parametrize("isa", runtime.isas())
def test_threads_give_the_same_bits(isa):
    scene = random_scene(600, 70, 50, cameras=2)
    _, _, meta = splat.rasterization(**scene)
    with runtime.use_isa(isa):
        results = []
        for count in (1, 2, 4):
            with runtime.use_threads(count):
                results.append(splat.contributors(meta, 4))
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


def test_errors():
    _, _, meta = splat.rasterization(**random_scene(5, 20, 18))
    with pytest.raises(ValueError, match="^k: expected at least 1, got 0$"):
        splat.contributors(meta, 0)
