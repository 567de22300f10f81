"""Solves with symmetric positive definite matrices, and what is done where Cholesky fails."""

from __future__ import annotations

import pytest
import torch

from pyext.ops import solve
from pyext.reference import solve as reference
from tests.ops.agreement import assert_same_on_any_threads, random
from tests.ops.solve_layers import (
    dense_update,
    dual_update,
    factored_update,
    layer,
    relative,
    spd,
)

ops = torch.ops.pyext

# Matrices, d, right-hand sides: sizes within a block, around one, and of several.
SMALL = [(1, 1, 1), (3, 5, 2), (2, 33, 17), (1, 64, 3)]
SHAPES = [*SMALL, (5, 65, 4), (2, 200, 40), (1, 300, 16)]


def matrices(count, d, condition):
    return torch.stack([spd(d, condition, i) for i in range(count)])


# Two backward stable solvers differ by a few condition numbers times eps.
def compare(count, d, rows, condition, tolerance):
    g, p = matrices(count, d, condition), random(count, rows, d)
    lower = g.masked_fill(torch.ones(d, d).triu(1) > 0, torch.nan)
    before = lower.clone()
    got = solve.spd_solve(lower, p, half=True)
    want = reference.spd_solve(g, p, half=True)
    assert torch.equal(lower.nan_to_num(), before.nan_to_num())
    assert got.info.tolist() == want.info.tolist() == [0] * count
    assert got.jitter.tolist() == [0.0] * count
    assert relative(got.z, want.z) < tolerance
    assert relative(got.s, want.s) < tolerance
    # The estimate is of a norm from below, and rarely off by more than a small factor.
    assert (got.rcond >= want.rcond * (1 - 1e-6)).all() and (got.rcond <= 3 * want.rcond).all()


@pytest.mark.numerics_small
@pytest.mark.parametrize("count, d, rows", SMALL)
def test_solutions_small(count, d, rows):
    compare(count, d, rows, 1e4, 1e-11)


@pytest.mark.parametrize("count, d, rows", SHAPES)
@pytest.mark.parametrize("condition, tolerance", [(1e4, 1e-11), (1e7, 1e-8)])
def test_solutions(count, d, rows, condition, tolerance):
    compare(count, d, rows, condition, tolerance)


def test_solutions_of_wide_blocks():
    compare(1, 1030, 5, 1e4, 1e-11)


@pytest.mark.numerics_small
@pytest.mark.parametrize("d", [7, 70])
def test_the_factor_takes_the_place_of_the_matrix(d):
    g, p = matrices(2, d, 1e3), random(2, 3, d)
    factor = g.clone()
    solved = solve.spd_solve(factor, p, half=True, inplace_factor=True)
    assert torch.equal(factor, factor.tril())
    assert relative(factor @ factor.mT, g) < 1e-14
    assert relative(solved.s @ factor.mT, p) < 1e-12


def test_in_place_with_gaps():
    g, p = matrices(2, 9, 1e3), random(2, 3, 9)
    gaps = torch.zeros(2, 9, 12, dtype=torch.float64)[..., :9].copy_(g)
    solved = solve.spd_solve(gaps, p, inplace_factor=True)
    dense = g.clone()
    assert torch.equal(solved.z, solve.spd_solve(dense, p, inplace_factor=True).z)
    assert torch.equal(gaps, dense)


def test_float32_is_widened_and_flagged():
    g, p = matrices(2, 20, 100).float(), random(2, 3, 20, dtype=torch.float32)
    got, want = solve.spd_solve(g, p), solve.spd_solve(g.double(), p.double())
    assert got.z.dtype == torch.float32 and torch.equal(got.z, want.z.float())
    assert got.info.tolist() == [solve.FLOAT32_GRAM] * 2
    assert reference.spd_solve(g, p).info.tolist() == [solve.FLOAT32_GRAM] * 2


def with_eigenvalue(d, least):
    """Eigenvalues 1, but for one."""
    vectors = torch.linalg.qr(random(d, d))[0]
    values = torch.ones(d, dtype=torch.float64)
    values[0] = least
    whole = (vectors * values) @ vectors.T
    return (whole + whole.T) / 2


# Smallest eigenvalue, the try that succeeds: jitters are about 1e-14, 1e-12 and 1e-10.
LADDER = [(1e-3, 0), (-1e-13, 2), (-1e-11, 3), (-1e-6, 4)]


@pytest.mark.numerics_small
@pytest.mark.parametrize("least, rung", LADDER)
@pytest.mark.parametrize("module", [solve, reference])
def test_each_rung_is_reached(least, rung, module):
    d = 40
    g = torch.stack([spd(d, 10), with_eigenvalue(d, least)])
    p = random(2, 3, d) @ g
    solved = module.spd_solve(g, p, half=True)
    assert solved.info.tolist() == [0, rung]
    largest = g[1].diagonal().amax().item()
    jitter = 0.0 if rung in (0, 4) else 1e-14 * largest * 100.0 ** (rung - 1)
    torch.testing.assert_close(solved.jitter[1].item(), jitter, rtol=1e-12, atol=0)
    assert solved.z.isfinite().all()
    # The direction of the odd eigenvalue is lost, all others are solved for.
    kept = random(2, 3, d)[1] - (random(2, 3, d)[1] @ odd(d))[:, None] * odd(d)
    found = solved.z[1] - (solved.z[1] @ odd(d))[:, None] * odd(d)
    assert relative(found, kept) < 1e-4


def odd(d):
    return torch.linalg.qr(random(d, d))[0][:, 0]


@pytest.mark.parametrize("module", [solve, reference])
def test_the_first_jitter_is_enough_for_a_zero_pivot(module):
    g = torch.ones(1, 2, 2, dtype=torch.float64)
    solved = module.spd_solve(g, torch.ones(1, 1, 2, dtype=torch.float64))
    assert solved.info.tolist() == [1] and solved.jitter.tolist() == [1e-14]
    torch.testing.assert_close(solved.z[0].sum().item(), 1.0, rtol=1e-1, atol=0)


def test_the_last_rung_is_a_pseudo_inverse():
    d, rank = 30, 12
    x = random(rank, d)
    g = (x.T @ x)[None]
    wanted = random(1, 4, rank) @ x
    factor = g.clone()
    options = {"max_tries": 0, "half": True, "inplace_factor": True}
    solved = solve.spd_solve(factor, wanted @ g, **options)
    assert solved.info.tolist() == [1]
    assert relative(solved.z, wanted) < 1e-10
    assert torch.equal(factor, factor.tril()) and (factor.diagonal(dim1=1, dim2=2) > 0).all()
    assert relative(factor @ factor.mT, g) < 1e-13
    assert relative(solved.s, solved.z @ factor) < 1e-14


@pytest.mark.parametrize("module", [solve, reference])
def test_other_ways_to_fail(module):
    g = torch.stack([spd(6, 10), -spd(6, 10), spd(6, 10)])
    p = random(3, 2, 6)
    message = r"^g\[1\]: not positive definite, pivot 1 of 6 failed$"
    with pytest.raises(ValueError, match=message):
        module.spd_solve(g, p, on_fail="raise")
    with pytest.raises(ValueError, match=r"^g\[1\]: expected a positive eigenvalue, got none$"):
        module.spd_solve(g, p)
    solved = module.spd_solve(g, p, on_fail="nan")
    assert solved.info.tolist() == [0, -1, 0]
    assert solved.z[1].isnan().all() and solved.z[[0, 2]].isfinite().all()
    assert solved.rcond[1].item() == 0
    g[2, 3, 1] = g[2, 1, 3] = torch.nan
    with pytest.raises(ValueError, match=r"^g\[2\]: expected finite entries, got NaN or infinity$"):
        module.spd_solve(g[[0, 0, 2]], p)


@pytest.mark.parametrize("alpha", [1e-2, 1e-4])
def test_factored_solution_of_a_layer_is_the_dense_one(alpha):
    case = layer(alpha)
    assert relative(factored_update(case, solve), dense_update(case)) < 1e-10


@pytest.mark.parametrize("alpha, tolerance", [(1e-4, 1e-10), (1e-7, 1e-7)])
def test_dual_solution_of_a_layer_is_the_primal_one(alpha, tolerance):
    case = layer(alpha, rows=(7, 5), d=64)
    assert relative(dual_update(case, solve), dense_update(case)) < tolerance


def test_dual_of_no_tokens_is_the_weighted_mean():
    a, rho = random(3, 8), random(3, seed=1)
    y, q, gamma = torch.zeros(0, 8).double(), torch.zeros(0, 3).double(), torch.tensor(0.5).double()
    for module in (solve, reference):
        assert torch.equal(module.dual_solve(y, q, a, rho, gamma).z, rho[:, None] * a)
        with pytest.raises(ValueError, match="^gamma: expected no negative value, got -0.5$"):
            module.dual_solve(y, q, a, rho, -gamma)


@pytest.mark.parametrize("count, d, rows", [(0, 4, 2), (2, 0, 3), (2, 4, 0)])
def test_solutions_of_nothing(count, d, rows):
    g, p = matrices(2, max(d, 1), 2)[:count, :d, :d], torch.zeros(count, rows, d).double()
    solved = solve.spd_solve(g, p, half=True)
    assert solved.z.shape == solved.s.shape == p.shape and solved.info.tolist() == [0] * count


@pytest.mark.parametrize("count", [1, 9])
def test_solutions_threads(count):
    g, p = matrices(count, 150, 1e3), random(count, 20, 150)
    bad = with_eigenvalue(150, -1e-11)
    g[0] = bad

    def run():
        factor = g.clone()
        return [*solve.spd_solve(factor, p, half=True, inplace_factor=True), factor]

    assert run()[2].tolist() == [3] + [0] * (count - 1)
    assert_same_on_any_threads(run)


def test_few_tokens_threads():
    y, q, a = random(60, 200), random(60, 20, seed=1), random(20, 200, seed=2)
    rho, gamma = random(20, seed=3), torch.tensor(0.1).double()
    assert_same_on_any_threads(lambda: solve.dual_solve(y, q, a, rho, gamma))


def test_solutions_opcheck():
    g, p = matrices(2, 6, 10), random(2, 3, 6)
    torch.library.opcheck(ops.solve_spd_solve.default, (g, p))
    torch.library.opcheck(ops.solve_spd_solve_.default, (g, p, "nan", 1e-14, 3, True))
    y, one = random(4, 6), torch.tensor(1.0).double()
    arguments = (y, random(4, 3), random(3, 6), torch.ones(3).double(), one)
    torch.library.opcheck(ops.solve_dual_solve.default, arguments)


@pytest.mark.parametrize(
    "g, p, options, error, message",
    [
        ((2, 3, 4), (2, 1, 4), {}, ValueError, r"^g: expected square matrices, got \[2, 3, 4\]$"),
        ((2, 4, 4), (2, 1, 3), {}, ValueError, r"^p: expected shape \[2, R, 4\], got \[2, 1, 3\]$"),
        ((2, 4, 4), (2, 1, 4), {"on_fail": "retry"}, ValueError, "^on_fail: expected one of "),
        ((2, 4, 4), (2, 1, 4), {"jitter0": 0.0}, ValueError, "^jitter0: expected a positive "),
        ((2, 4, 4), (2, 1, 4), {"max_tries": -1}, ValueError, "^max_tries: expected at least 0"),
    ],
)
def test_errors(g, p, options, error, message):
    for module in (solve, reference):
        with pytest.raises(error, match=message):
            module.spd_solve(torch.ones(g).double(), torch.ones(p).double(), **options)
