"""Products and dense matrices, truncated to a rank."""

from __future__ import annotations

import pytest
import torch

from pyext.ops import solve
from pyext.reference import solve as reference
from tests.ops.agreement import assert_same_on_any_threads, random
from tests.ops.solve_layers import relative, spd

ops = torch.ops.pyext

# L, o, d, R, rank: R above both sides, above one, and the common case.
SHAPES = [(1, 1, 1, 1, 1), (2, 9, 13, 4, 2), (2, 30, 20, 6, 6), (1, 5, 12, 8, 7), (1, 5, 6, 8, 8)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}


def pair(count, o, d, inner, dtype):
    return random(count, o, inner, dtype=dtype), random(count, inner, d, seed=1, dtype=dtype)


def assert_same(got, want, tolerance):
    for name, a, b in zip(got._fields, got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, name
        scale = max(b.double().abs().max().item(), 1e-3)
        assert (a.double() - b.double()).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("balance", [True, False])
def test_factored(shape, dtype, balance):
    *sizes, rank = shape
    u, v = pair(*sizes, dtype)
    options = {"balance": balance}
    got = solve.factored_svd(u, v, rank, **options)
    assert_same(got, reference.factored_svd(u, v, rank, **options), TOLERANCE[dtype])
    assert got.kept.tolist() == [rank] * shape[0]


def test_all_that_is_kept_is_the_product():
    u, v = pair(2, 30, 20, 6, torch.float64)
    found = solve.factored_svd(u, v, 6)
    assert relative(found.b @ found.a, u @ v) < 1e-13
    assert found.err.max() < 1e-12
    for column in found.b[0].T:
        assert column[column.abs().argmax()] > 0


@pytest.mark.parametrize("energy, kept", [(0.5, 1), (0.97, 2), (0.999, 3), (1.0, 3)])
def test_energy(energy, kept):
    u, v = (torch.linalg.qr(random(1, n, 4, seed=n))[0] for n in (12, 9))
    scaled = u * torch.tensor([3.0, 2.0, 0.5, 0.1]).double()
    for module in (solve, reference):
        found = module.factored_svd(scaled, v.mT, 3, energy=energy)
        assert found.kept.tolist() == [kept]
        assert torch.equal(found.b[..., kept:], torch.zeros_like(found.b[..., kept:]))
        torch.testing.assert_close(found.sv[0], torch.tensor([3.0, 2.0, 0.5, 0.1]).double())
        cut = (scaled @ v.mT - found.b @ found.a).norm() / scaled.norm()
        torch.testing.assert_close(found.err[0], cut)


def test_weighed_by_a_gram():
    g, p, u = spd(12, 100)[None], random(1, 6, 12, seed=2), random(1, 9, 6, seed=1)
    factor = g.clone()
    solved = solve.spd_solve(factor, p, half=True, inplace_factor=True)
    got = solve.factored_svd(u, solved.s, 2, chol=factor)
    assert_same(got, reference.factored_svd(u, solved.s, 2, chol=factor), 1e-11)
    whole = u @ solved.z
    error = ((whole - got.b @ got.a) @ factor).norm() / (whole @ factor).norm()
    torch.testing.assert_close(got.err[0], error)
    plain = solve.factored_svd(u, solved.z, 2)
    assert error < ((whole - plain.b @ plain.a) @ factor).norm() / (whole @ factor).norm()


def test_a_product_of_nothing_and_of_zeros():
    found = solve.factored_svd(torch.zeros(2, 5, 3), torch.zeros(2, 3, 4), 2, energy=0.9)
    assert found.kept.tolist() == [0, 0] and found.err.tolist() == [0, 0]
    assert torch.equal(found.b, torch.zeros(2, 5, 2))
    assert solve.factored_svd(torch.zeros(0, 5, 3), torch.zeros(0, 3, 4), 2).b.shape == (0, 5, 2)


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dense_exact(lead, dtype):
    w = random(*lead, 12, 9, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    got, want = (m.truncate_dense(w, 3, method="exact") for m in (solve, reference))
    assert_same(got, want, TOLERANCE[wide])
    assert got.b.dtype == wide


def test_dense_weighed():
    w, chol = random(12, 9), torch.linalg.cholesky(spd(9, 100))
    got, want = (m.truncate_dense(w, 3, method="exact", chol=chol) for m in (solve, reference))
    assert_same(got, want, 1e-11)


def test_dense_by_random_vectors():
    vectors = [torch.linalg.qr(random(n, 60, seed=n))[0] for n in (80, 70)]
    w = (vectors[0] * torch.logspace(0, -6, 60).double()) @ vectors[1].T
    exact, found = (solve.truncate_dense(w, 5, method=m) for m in ("exact", "rsvd"))
    # With two power iterations the range is off by the fifth power of a ratio of values.
    assert relative(found.sv, exact.sv) < 1e-6
    assert relative(found.b @ found.a, exact.b @ exact.a) < 1e-4
    torch.testing.assert_close(found.err, exact.err, rtol=1e-4, atol=0)
    again = solve.truncate_dense(w, 5, method="auto")
    for a, b in zip(found, again, strict=True):
        assert torch.equal(a, b)
    other = solve.truncate_dense(w, 5, method="rsvd", seed=1)
    assert not torch.equal(other.b, found.b)


def test_truncation_threads():
    u, v = random(3, 200, 24), random(3, 24, 150)
    w = random(200, 150)

    def run():
        cut = solve.factored_svd(u, v, 8)
        dense = [solve.truncate_dense(w, 8, method=method) for method in ("exact", "rsvd")]
        return [x for result in (cut, *dense) for x in result]

    assert_same_on_any_threads(run)


def test_truncation_opcheck():
    u, v = pair(2, 9, 13, 4, torch.float64)
    check = torch.library.opcheck
    check(ops.solve_factored_svd.default, (u, v, 2, spd(13, 2).expand(2, 13, 13).clone(), 0.5))
    for method in ("exact", "rsvd"):
        check(ops.solve_truncate_dense.default, (random(9, 7), 2, method, 2))


def test_truncation_compiles_without_a_break():
    u, v = pair(2, 9, 13, 4, torch.float64)
    compiled = torch.compile(solve.factored_svd, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(u, v, 2), solve.factored_svd(u, v, 2), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("module", [solve, reference])
def test_errors(module):
    u, v = pair(2, 9, 13, 4, torch.float64)
    with pytest.raises(ValueError, match=r"^rank: expected 1 to 4 \(R\), got 5$"):
        module.factored_svd(u, v, 5)
    with pytest.raises(ValueError, match=r"^v: expected shape \[2, 4, d\], got \[2, 3, 13\]$"):
        module.factored_svd(u, v[:, :3], 2)
    with pytest.raises(ValueError, match="^energy: expected 0 to 1, got 1.5$"):
        module.factored_svd(u, v, 2, energy=1.5)
    with pytest.raises(ValueError, match="^method: expected one of 'auto', 'exact', 'rsvd', got"):
        module.truncate_dense(u, 2, method="svd")
    with pytest.raises(ValueError, match=r"^rank: expected 1 to 4 \(min\(o, d\)\), got 0$"):
        module.truncate_dense(u, 0)
    with pytest.raises(NotImplementedError, match="^u: this function has no gradient; detach it"):
        module.factored_svd(u.requires_grad_(), v, 2)
