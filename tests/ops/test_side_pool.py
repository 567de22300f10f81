"""Pooling of feature maps to tokens."""

from __future__ import annotations

import pytest
import torch

from pyext.ops import side
from pyext.reference import side as reference
from tests.ops.side_agreement import DTYPES, assert_near, assert_same_on_any_threads, random

ops = torch.ops.pyext

# [B, C, H, W] and the side of a window: one channel, channels and columns that fill no vector,
# windows of one place, of a whole map, and wider than the kernels' step.
MAPS = [
    ((1, 1, 1, 1), 1),
    ((2, 3, 4, 6), 2),
    ((2, 17, 6, 9), 3),
    ((1, 33, 8, 136), 4),
    ((1, 2, 10, 5), 1),
    ((1, 4, 150, 300), 150),
]
SMALL = MAPS[:4]


@pytest.mark.numerics_small
@pytest.mark.parametrize("shape, r", SMALL)
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_maxavg_pool_small(shape, r, dtype):
    x = random(*shape, dtype=dtype)
    assert_near(side.maxavg_pool(x, r), reference.maxavg_pool(x, r))


@pytest.mark.parametrize("shape, r", MAPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_maxavg_pool(shape, r, dtype):
    x = random(*shape, dtype=dtype)
    assert_near(side.maxavg_pool(x, r), reference.maxavg_pool(x, r))
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(side.maxavg_pool(strided, r), side.maxavg_pool(x, r))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)])
def test_maxavg_pool_of_nothing(shape):
    x = torch.zeros(shape)
    assert side.maxavg_pool(x, 2).shape == reference.maxavg_pool(x, 2).shape


def test_maxavg_pool_threads():
    x = random(2, 40, 16, 24, dtype=torch.float32)
    assert_same_on_any_threads(lambda: [side.maxavg_pool(x, 4)])


def test_maxavg_pool_opcheck():
    torch.library.opcheck(ops.side_maxavg_pool.default, (random(2, 3, 4, 6).float(), 2))


@pytest.mark.parametrize(
    "shape, r, message",
    [
        ((2, 3, 4), 2, r"^x: expected shape \[B, C, H, W\], got \[2, 3, 4\]$"),
        ((2, 3, 4, 6), 0, "^r: expected at least 1, got 0$"),
        ((2, 3, 4, 6), 4, "^x: a map of 4x6 is not divisible by 4$"),
    ],
)
def test_maxavg_pool_errors(shape, r, message):
    with pytest.raises(ValueError, match=message):
        side.maxavg_pool(torch.zeros(shape), r)


def test_maxavg_pool_has_no_gradient():
    with pytest.raises(NotImplementedError, match="^x: maxavg_pool has no gradient; detach it$"):
        side.maxavg_pool(torch.zeros(1, 1, 2, 2, requires_grad=True), 2)
