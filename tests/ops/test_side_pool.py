"""Pooling of feature maps to tokens."""

from __future__ import annotations

import pytest
import torch

from pyext.ops import side
from pyext.reference import side as reference
from tests.ops.agreement import (
    DTYPES,
    assert_near,
    assert_same_on_any_threads,
    gradients,
    random,
)

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


def guided_inputs(shape, r, dtype):
    x = random(*shape, dtype=dtype)
    guide = random(*shape[:2], shape[2] // r, shape[3] // r, seed=1, dtype=dtype)
    return x.requires_grad_(), guide.requires_grad_()


def compare_guided(shape, r, dtype):
    x, guide = guided_inputs(shape, r, dtype)
    # The gradient of a window of one place is of the size of eps.
    got, g_got = gradients(lambda: side.guided_pool(x, guide, eps=0.1), (x, guide))
    want, g_want = gradients(lambda: reference.guided_pool(x, guide, eps=0.1), (x, guide))
    assert_near(got[0], want[0], 2)
    for name, a, b in zip(("x", "guide"), g_got, g_want, strict=True):
        assert_near(a, b, 8, name)  # a quotient of sums over the channels


@pytest.mark.numerics_small
@pytest.mark.parametrize("shape, r", SMALL)
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_guided_pool_small(shape, r, dtype):
    compare_guided(shape, r, dtype)


@pytest.mark.parametrize("shape, r", MAPS[4:])
@pytest.mark.parametrize("dtype", DTYPES)
def test_guided_pool(shape, r, dtype):
    compare_guided(shape, r, dtype)


def test_guided_pool_gradcheck():
    x, guide = guided_inputs((2, 3, 4, 6), 2, torch.float64)
    assert torch.autograd.gradcheck(lambda x, g: side.guided_pool(x, g, eps=1e-3), (x, guide))


def test_guided_pool_without_a_positive_score_is_the_mean():
    x = random(2, 3, 4, 4).abs()
    guide = torch.full((2, 3, 2, 2), -1.0, dtype=x.dtype, requires_grad=True)
    y = side.guided_pool(x, guide)
    torch.testing.assert_close(y, torch.nn.functional.avg_pool2d(x, 2).flatten(2).mT)
    (gradient,) = torch.autograd.grad(y.sum(), guide)
    assert torch.equal(gradient, torch.zeros_like(guide))


def test_guided_pool_frozen_map_gets_no_gradient():
    x, guide = guided_inputs((2, 3, 4, 6), 2, torch.float32)
    y = side.guided_pool(x.detach(), guide)
    (frozen,) = torch.autograd.grad(y.sum(), guide)
    (both, _) = torch.autograd.grad(side.guided_pool(x, guide).sum(), (guide, x))
    assert torch.equal(frozen, both)


def test_guided_pool_threads():
    x, guide = guided_inputs((2, 40, 16, 24), 4, torch.float32)

    def run():
        outputs, grads = gradients(lambda: side.guided_pool(x, guide), (x, guide))
        return [*outputs, *grads]

    assert_same_on_any_threads(run)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_guided_pool_opcheck(dtype):
    torch.library.opcheck(
        ops.side_guided_pool.default, (*guided_inputs((2, 3, 4, 6), 2, dtype), 1e-8)
    )


def test_guided_pool_of_nothing():
    x, guide = torch.zeros(0, 3, 4, 4), torch.zeros(0, 3, 2, 2, requires_grad=True)
    y = side.guided_pool(x, guide)
    assert y.shape == (0, 4, 3)
    assert torch.autograd.grad(y.sum(), guide)[0].shape == guide.shape


def test_guided_pool_second_derivatives_are_refused():
    x, guide = guided_inputs((1, 2, 2, 2), 2, torch.float32)
    (gradient,) = torch.autograd.grad(side.guided_pool(x, guide).sum(), guide, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        torch.autograd.grad(gradient.sum(), x)


@pytest.mark.parametrize(
    "shape, grid, message",
    [
        (
            (2, 3, 7, 8),
            (2, 2),
            "^x: a map of 7x8 is not an integer multiple of the guide grid 2x2$",
        ),
        (
            (2, 3, 4, 8),
            (2, 2),
            "^x: a map of 4x8 is not an integer multiple of the guide grid 2x2$",
        ),
    ],
)
def test_guided_pool_errors(shape, grid, message):
    x, guide = torch.zeros(shape), torch.zeros(*shape[:2], *grid)
    for call in (side.guided_pool, lambda x, g: ops.side_guided_pool(x, g, 1e-8)):
        with pytest.raises(ValueError, match=message):
            call(x, guide)
