"""Orthonormal rows that span those of a matrix."""

from __future__ import annotations

import math

import pytest
import torch

from pyext import runtime
from pyext.ops import lowrank
from pyext.reference import lowrank as reference
from tests.ops.agreement import (
    TOLERANCE,
    assert_near,
    assert_same_on_any_threads,
    gradients,
    random,
)

ops = torch.ops.pyext
SINGLE, DOUBLE = torch.float32, torch.float64


def conditioned(count, rank, width, condition, dtype=DOUBLE):
    """Matrices with singular values from 1 down to 1 / condition."""
    left = torch.linalg.qr(random(count, rank, rank))[0]
    right = torch.linalg.qr(random(count, width, rank, seed=1))[0].mT
    values = torch.logspace(0, -math.log10(condition), rank, dtype=DOUBLE)
    return (left * values @ right).to(dtype)


def defect(R):
    """The largest entry of R R^T - I."""
    wide = R.detach().double()
    return (wide @ wide.mT - torch.eye(R.shape[-2]).double()).abs().max().item()


def compare(shape, dtype):
    # In double the reference, too, has a few roundings a row of the triangle that it solves with.
    factor = 4 if dtype == SINGLE else 8 * shape[-2] ** 0.5
    X = random(*shape, dtype=dtype).requires_grad_()
    got, g_got = gradients(lambda: lowrank.orthonormalize(X), [X])
    want, g_want = gradients(lambda: reference.orthonormalize(X), [X])
    assert_near(got[0], want[0], factor, "R")
    assert_near(got[1], want[1], factor, "L")
    assert_near(g_got[0], g_want[0], factor, "gradient")


@pytest.mark.numerics_small
@pytest.mark.parametrize("shape", [(1, 1), (3, 1, 7), (2, 3, 5), (2, 2, 6, 40), (1, 9, 300)])
def test_small(shape):
    compare(shape, SINGLE)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("shape", [(5, 6, 1024), (2, 64, 200), (1, 4, 4099)])
def test_agreement(shape, dtype):
    compare(shape, dtype)


@pytest.mark.parametrize("isa", runtime.isas())
@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_every_instruction_set(isa, dtype):
    with runtime.use_isa(isa):
        compare((3, 7, 90), dtype)


@pytest.mark.numerics_small
@pytest.mark.parametrize("condition", [1, 1e4, 1e6])
def test_orthonormal_whatever_the_condition(condition):
    X = conditioned(2, 8, 256, condition, SINGLE)
    R, L = lowrank.orthonormalize(X)
    assert defect(R) <= 2.0**-23  # half a unit in the last place of 1, twice
    assert torch.equal(L, L.tril()) and (L.diagonal(dim1=-2, dim2=-1) > 0).all()
    # Two roundings of entries up to 1, over a row of L, and the norm of X is 1.
    assert (L.double() @ R.double() - X.double()).abs().max() <= 8 * 2.0**-24


@pytest.mark.parametrize("condition", [1, 1e8, 1e13])
def test_orthonormal_in_double(condition):
    R, _ = lowrank.orthonormalize(conditioned(2, 8, 512, condition))
    assert defect(R) <= 8 * torch.finfo(DOUBLE).eps


def test_at_the_size_of_a_model():
    assert defect(lowrank.orthonormalize(random(2, 8, 4096, dtype=SINGLE)).R) <= 1e-6


@pytest.mark.parametrize("shape", [(1, 4), (2, 3, 6), (5, 5)])
def test_gradcheck(shape):
    X = random(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: lowrank.orthonormalize(x).R, [X])


def test_a_badly_conditioned_gradient():
    X = conditioned(1, 6, 100, 1e4).requires_grad_()
    _, got = gradients(lambda: lowrank.orthonormalize(X).R, [X])
    _, want = gradients(lambda: reference.orthonormalize(X).R, [X])
    # Errors of the factors are multiplied by the condition, and the gradient, too, is.
    assert_near(got[0], want[0], 1e4 * 8 * torch.finfo(DOUBLE).eps / TOLERANCE[DOUBLE])


@pytest.mark.numerics_small
@pytest.mark.parametrize("dtype", [SINGLE])
def test_orthonormal_rows_stay(dtype):
    R = lowrank.orthonormalize(random(3, 5, 40, dtype=dtype)).R
    again, L = lowrank.orthonormalize(R)
    assert_near(again, R)
    assert_near(L, torch.eye(5).expand(3, -1, -1))


def test_of_nothing():
    X = torch.zeros(0, 3, 8, requires_grad=True)
    for implementation in (lowrank, reference):
        R, L = implementation.orthonormalize(X)
        assert R.shape == (0, 3, 8) and L.shape == (0, 3, 3)
        assert torch.autograd.grad(R.sum(), X)[0].shape == X.shape


@pytest.mark.parametrize("count", [1, 9])
def test_threads(count):
    X = random(count, 6, 700, dtype=SINGLE).requires_grad_()

    def run():
        outputs, grads = gradients(lambda: lowrank.orthonormalize(X), [X])
        return [*outputs, *grads]

    assert_same_on_any_threads(run)


def test_a_matrix_does_not_depend_on_those_beside_it():
    X = random(5, 4, 100, dtype=SINGLE)
    whole = lowrank.orthonormalize(X)
    for e in range(5):
        one = lowrank.orthonormalize(X[e])
        assert torch.equal(one.R, whole.R[e]) and torch.equal(one.L, whole.L[e])


def test_strided():
    X = random(3, 50, 4, dtype=SINGLE).mT
    assert torch.equal(lowrank.orthonormalize(X).R, lowrank.orthonormalize(X.contiguous()).R)


def test_opcheck():
    X = random(3, 2, 9, dtype=SINGLE).requires_grad_()
    torch.library.opcheck(ops.lowrank_orthonormalize.default, (X,))


def test_compiles_whole():
    X = random(3, 2, 9, dtype=SINGLE).requires_grad_()
    whole = torch.compile(
        lambda x: lowrank.orthonormalize(x).R, fullgraph=True, backend="aot_eager"
    )
    for f in (whole, lambda x: lowrank.orthonormalize(x).R):
        got = gradients(lambda f=f: f(X), [X])
        want = gradients(lambda: reference.orthonormalize(X).R, [X])
        assert_near(got[0][0], want[0][0], 8)
        assert_near(got[1][0], want[1][0], 8)


def test_second_derivatives_are_refused():
    X = random(2, 2, 5).requires_grad_()
    R = lowrank.orthonormalize(X).R
    (g,) = torch.autograd.grad(R.pow(3).sum(), X, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        torch.autograd.grad(g.sum(), X)


def broken(kind):
    X = random(4, 3, 20, dtype=SINGLE)
    if kind == "zero":
        X[2, 1] = 0
    elif kind == "equal":
        X[2, 2] = X[2, 0]
    elif kind == "sum":
        X[2, 2] = X[2, 0] + 1e-9 * X[2, 1]
    else:
        X[2, 0, 7] = float(kind)
    return X


@pytest.mark.numerics_small
@pytest.mark.parametrize("kind", ["zero", "equal", "sum", "nan", "inf"])
@pytest.mark.parametrize("implementation", [lowrank, reference])
def test_dependent_rows_are_refused(implementation, kind):
    with pytest.raises(ValueError, match="^X: matrix 2 is not finite, or its rows are dependent$"):
        implementation.orthonormalize(broken(kind))


@pytest.mark.parametrize("implementation", [lowrank, reference])
@pytest.mark.parametrize(
    "X, error, message",
    [
        (torch.zeros(5), ValueError, r"expected shape \[..., r, D\], got \[5\]"),
        (torch.zeros(5, 4), ValueError, "rank 5 is more than the width 4"),
        (torch.zeros(65, 100), ValueError, "expected a rank from 1 to 64, got 65"),
        (torch.zeros(0, 100), ValueError, "expected a rank from 1 to 64, got 0"),
        (torch.zeros(2, 4).long(), TypeError, "expected dtype float32, bfloat16, float16, fl"),
        (torch.zeros(2, 4).bfloat16(), TypeError,
         "expected float32 or float64, got torch.bfloat16: an orthonormal factor must be kept"),
    ],
)  # fmt: skip
def test_errors(implementation, X, error, message):
    with pytest.raises(error, match=f"^X: {message}"):
        implementation.orthonormalize(X)


def test_op_checks_for_itself():
    for X, error, message in (
        (torch.zeros(2, 3), ValueError, r"expected shape \[any, any, any\], got \[2, 3\]"),
        (torch.zeros(1, 2, 3).half(), TypeError, "expected dtype float32 or float64, got Half"),
        (torch.zeros(1, 70, 80), ValueError, "expected a rank from 1 to 64, got 70"),
        (torch.zeros(1, 3, 2), ValueError, "rank 3 is more than the width 2"),
    ):
        with pytest.raises(error, match=f"^X: {message}"):
            ops.lowrank_orthonormalize(X)
