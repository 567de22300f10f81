"""The routes of the benchmark lift to the same values, and its claims read the rows."""

import pytest

from benchmarks import splat_routes
from benchmarks.harness import Row, Timing, Work, load_family
from benchmarks.splat_routes import CELLS, PER_CHANNEL, REUSED


@pytest.fixture
def small_case(monkeypatch):
    for name, value in (("GAUSSIANS", 60), ("SIDE", 40), ("MAP", 5), ("CHANNELS", 3)):
        monkeypatch.setattr(splat_routes, name, value)
    (case,) = splat_routes.cases()
    return case


@pytest.mark.parametrize("route", [PER_CHANNEL, CELLS, REUSED])
def test_routes_give_the_same_values(route, small_case):
    (want,) = splat_routes.expected(small_case)
    (got,) = load_family("splat_routes").arms[route].build(small_case)()
    assert want.shape == (60, 3) and want.any()
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_the_least_work_is_that_of_the_product(small_case):
    matrix = splat_routes.unproject_cells(small_case.data.meta, 5, 5).lift_matrix
    work = small_case.work
    assert work.flops == 2 * 3 * (matrix.to_dense() != 0).sum()
    assert work.bytes == 4 * (5 * 5 * 3 + 60 * 3)


def row(arm, threads, eager, difference):
    timing = Timing(median=1.0, lower=1.0, upper=1.0, runs=3)
    return Row("i", "s", arm, threads, Work(1, 1), timing=timing, times_eager=eager,
               max_difference=difference)  # fmt: skip


def test_claims_read_the_rows():
    rows = [row(CELLS, 1, 19.0, 1e-6), row(CELLS, 2, 30.0, 2e-5), row(REUSED, 1, 300.0, 1e-6)]
    built, reused, difference = splat_routes.claims(rows)
    assert built.measured == 19 and built.held is False
    assert reused.measured == 300 and reused.held
    assert difference.measured == 2e-5 and difference.held is False


def test_claims_without_rows_stay_open():
    assert [claim.held for claim in splat_routes.claims([])] == [None] * 3
