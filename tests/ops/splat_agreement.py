"""Agreement of the ops with their reference in float64.

Where tolerances come from: a projected centre carries a few float32 roundings of a number below
100, up to 1e-5 pixels, and moves alpha by at most its steepest slope, about 1 a pixel: 1e-5 at
worst and well below 1e-6 on average. A gradient adds up to a thousand such terms of both signs,
and quaternions take differences of sums: 5e-5 of the largest. Float64 has 1e-12 of everything.
Pixels on a threshold may fall on the other side, by one contribution: 1/255 at most, or, where a
pixel ends, 1e-4 alpha / (1 - alpha). They get no weight in the loss and a bound of their own.
"""

import pytest
import torch

from pyext.ops.splat import rasterization
from pyext.reference import splat as reference
from tests.ops.splat_scenes import cast, near_cuts, random_weights, run

small = pytest.mark.numerics_small


def check_agreement(scene, masked=0.02, flip=5e-3, scale=1.0):
    """`scale`: how much larger than a colour the values and their errors are."""
    exact = run(reference.rasterization, cast(scene, torch.float64))
    ours = run(rasterization, scene)
    single = scene["means"].dtype == torch.float32
    error = (ours.values() - exact.values()).abs()
    assert ours.values().shape == exact.values().shape and ours.alphas.dtype == scene["means"].dtype
    clear = ~near_cuts(exact.meta)
    assert (exact.meta["radii"] > 0).any() and clear.double().mean() >= 1 - masked
    assert error.max() <= flip * scale
    assert error[clear].max() <= scale * (1e-5 if single else 1e-12)
    assert error[clear].mean() <= scale * (1e-6 if single else 1e-12)

    weights = random_weights(exact.values()) * clear[..., None]
    expected, actual = exact.gradients(weights), ours.gradients(weights)
    bound = scale * (5e-5 if single else 1e-12)
    for name, want in expected.items():
        got = actual[name].double()
        assert got.shape == want.shape, name
        assert (got - want).norm() <= bound * want.norm(), name
        assert (got - want).abs().max() <= bound * want.abs().max(), name
    return ours


both_dtypes = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, marks=small, id="float32"),
        pytest.param(torch.float64, id="float64"),
    ],
)
