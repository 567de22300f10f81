"""The references of the family `solve` against the dense formulas of the paper."""

from __future__ import annotations

import pytest
import torch

from pyext.reference import solve
from tests.ops.side_agreement import random
from tests.ops.solve_layers import dense_update, dual_update, factored_update, layer, relative, spd


@pytest.mark.parametrize("alpha", [1e-2, 1e-4])
def test_factored_solution_is_the_dense_one(alpha):
    case = layer(alpha)
    assert relative(factored_update(case, solve), dense_update(case)) < 1e-10


@pytest.mark.parametrize("alpha, tolerance", [(1e-4, 1e-10), (1e-7, 1e-7)])
def test_dual_solution_is_the_primal_one(alpha, tolerance):
    case = layer(alpha, rows=(7, 5), d=64)
    assert relative(dual_update(case, solve), dense_update(case)) < tolerance


def test_gram_is_of_the_rows_that_count():
    x = random(3, 5, 7)
    x[1, 2] = torch.nan
    mask = torch.ones(15, dtype=torch.bool)
    mask[7] = False
    gram = torch.ones(7, 7, dtype=torch.float64)
    h = solve.gram_proj_acc_(gram, x, random(2, 7), row_weight=mask)
    kept = x.reshape(15, 7)[mask]
    torch.testing.assert_close(gram.tril(), (1 + kept.T @ kept).tril())
    assert torch.equal(gram.triu(1), torch.ones(7, 7).triu(1).double())
    torch.testing.assert_close(h[mask], kept @ random(2, 7).T)
    assert torch.equal(h[7], torch.zeros(2).double())


def test_segments_are_counted_apart():
    x, seg = random(10, 4), torch.tensor([1, 4, 4, 10])
    grams = torch.zeros(3, 4, 4, dtype=torch.float64)
    solve.gram_acc_(grams, x, seg=seg)
    for gram, part in zip(grams, (x[1:4], x[:0], x[4:]), strict=True):
        torch.testing.assert_close(gram, (part.T @ part).tril())


def test_combined_and_normed():
    whole = torch.stack([spd(5, 10, i) for i in range(2)])
    lam = torch.tensor([[1.0, 2.0], [3.0, 0.5]], dtype=torch.float64)
    gamma = torch.tensor([[0.1, 0.0], [0.2, 0.3]], dtype=torch.float64)
    combined = solve.gram_combine(whole.tril(), lam, gamma)
    one = torch.eye(5, dtype=torch.float64)
    expected = 3 * (whole[0] + 0.2 * one) + 0.5 * (whole[1] + 0.3 * one)
    torch.testing.assert_close(combined[1], expected.tril())
    norms = torch.linalg.matrix_norm(whole)
    torch.testing.assert_close(solve.sym_fro_norm(whole.tril()), norms)


def test_truncation_weighed_by_a_gram_is_better_on_its_outputs():
    x = random(60, 12) * torch.logspace(0, -2, 12, dtype=torch.float64)
    g = (x.T @ x)[None]
    u, p = random(1, 9, 6, seed=1), random(1, 6, 12, seed=2) @ g
    factor = g.clone()
    solved = solve.spd_solve(factor, p, half=True, inplace_factor=True)
    plain = solve.factored_svd(u, solved.z, 2)
    weighed = solve.factored_svd(u, solved.s, 2, chol=factor)
    whole = (u @ solved.z)[0]

    def error(found):
        return ((whole - found.b[0] @ found.a[0]) @ x.T).norm()

    assert error(weighed) < error(plain)
    torch.testing.assert_close(error(weighed) / (whole @ x.T).norm(), weighed.err[0])
