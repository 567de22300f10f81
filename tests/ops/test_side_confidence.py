"""Weights of taps from their means."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyext.ops import side
from pyext.reference import side as reference
from tests.ops.agreement import assert_near, assert_same_on_any_threads, random
from tests.ops.side_mixing import evaluate, leaves

ops = torch.ops.pyext

# Batch, taps, channels: one tap, channels that fill no vector.
SHAPES = [(1, 1, 1), (2, 3, 7), (5, 12, 40)]


def make_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, affine: bool, parameters: torch.dtype | None = None
) -> dict[str, Any]:
    batch, taps, d = shape
    own = parameters or dtype
    return {
        "pool_q": random(batch, d, dtype=dtype),
        "pool": random(batch, taps, d, dtype=dtype),
        "a": random(taps, d, dtype=own) if affine else None,
        "c": random(taps, d, seed=1, dtype=own) if affine else None,
        "w": random(d, seed=3, dtype=own) / d**0.5,
        "b": random(1, dtype=own),
    }


def check(shape: tuple[int, ...], dtype: torch.dtype, affine: bool) -> None:
    inputs = make_inputs(shape, dtype, affine)
    (got, g_got), (want, g_want) = (
        evaluate(f, inputs) for f in (side.confidence, reference.confidence)
    )
    assert_near(got[0], want[0], 4)
    # Where there is one tap all is zero but for rounding; b has no gradient at all.
    assert not g_got.pop("b").any()
    if shape[1] > 1:
        for name, gradient in g_got.items():
            assert_near(gradient, g_want[name], 16, name)


@pytest.mark.numerics_small
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [False, True])
def test_agrees_small(shape, affine):
    check(shape, torch.float32, affine)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees(shape, affine, dtype):
    check(shape, dtype, affine)


@pytest.mark.parametrize("affine", [False, True])
def test_gradcheck(affine):
    inputs = leaves(make_inputs((3, 4, 5), torch.float64, affine))
    given = [x for x in inputs.values() if x is not None]

    def alpha(*values):
        rest = iter(values)
        return side.confidence(*(x if x is None else next(rest) for x in inputs.values()))

    assert torch.autograd.gradcheck(alpha, given)


@pytest.mark.numerics_small
def test_large_products_do_not_overflow():
    pool = torch.tensor([[[1e4], [2e4], [-1e4]]])
    alpha = side.confidence(torch.ones(1, 1), pool, None, None, torch.ones(1), torch.zeros(1))
    assert alpha.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("parameters", [torch.bfloat16, torch.float16])
def test_parameters_of_16_bits_keep_their_type(parameters):
    inputs = make_inputs((2, 3, 7), torch.float32, True, parameters)
    _, found = evaluate(side.confidence, inputs)
    assert [found[k].dtype for k in ("a", "c", "w", "b")] == [parameters] * 4


def test_threads():
    inputs = make_inputs((37, 12, 100), torch.float32, True)

    def run():
        outputs, found = evaluate(side.confidence, inputs)
        return [*outputs, *found.values()]

    assert_same_on_any_threads(run)


@pytest.mark.parametrize("affine", [False, True])
def test_opcheck(affine):
    inputs = leaves(make_inputs((2, 3, 7), torch.float32, affine))
    torch.library.opcheck(ops.side_confidence.default, tuple(inputs.values()))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0)])
def test_nothing(shape):
    inputs = make_inputs((1, 3, 4), torch.float32, True)
    batch, taps, d = shape
    inputs |= {"pool_q": torch.zeros(batch, d), "pool": torch.zeros(shape), "w": torch.zeros(d)}
    inputs |= {"a": torch.zeros(taps, d), "c": torch.zeros(taps, d)}
    outputs, found = evaluate(side.confidence, inputs)
    assert_near(outputs[0], reference.confidence(**inputs))
    assert not any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pool": torch.zeros(2, 0, 7)}, "pool: expected at least one tap, got none"),
        ({"pool_q": torch.zeros(2, 6)}, r"pool_q: expected shape \[2, 7\], got \[2, 6\]"),
        ({"w": torch.zeros(6)}, r"w: expected shape \[7\], got \[6\]"),
    ],
)
def test_errors(change, message):
    inputs = make_inputs((2, 3, 7), torch.float32, False) | change
    for call in (side.confidence, ops.side_confidence):
        with pytest.raises(ValueError, match=message):
            call(*inputs.values())


def test_errors_of_types():
    inputs = make_inputs((2, 3, 7), torch.float32, False)
    inputs |= {"pool": inputs["pool"].half()}
    for call in (side.confidence, ops.side_confidence):
        with pytest.raises(TypeError, match="pool: expected dtype"):
            call(*inputs.values())
