"""The benchmark of low-rank ops at small sizes: arms agree, and its claims can fail."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import lowrank
from benchmarks.harness import Case, Row, Timing
from benchmarks.lowrank_shapes import Bases, Fresh, Layers, Mix, Rows, make_mix
from benchmarks.measure import prepare

SHAPES = [Mix("two adapters", 7, 12, 10, 2, 4), Mix("three adapters", 9, 12, 14, 3, 4)]
EDITS = Rows(samples=2, tokens=9, width=16, rank=2, edge=3)
LAYERS = Layers(count=2, width=16, inner=24, heads=2, tokens=9, rank=2, edge=3)
LIMITS = set(lowrank.FAMILY.limiting)


def ran(case):
    """Names of the arms that can be timed; none is wrong."""
    left_out, runs = prepare(lowrank.FAMILY, case, [1, 2])
    assert [(row.arm, row.relative_error) for row in left_out if row.wrong] == []
    return {row.arm for row, _, _ in runs}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("dtype", lowrank.DTYPES, ids=str)
@pytest.mark.parametrize("both", [False, True])
def test_arms_of_a_mixture_agree(shape, dtype, both):
    problem = lowrank.MixProblem(shape, dtype, both)
    case = Case("", "", shape.work(dtype, both), problem, lowrank.TOLERANCES[dtype])
    usual = {lowrank.USUAL, lowrank.PLAIN}
    wanted = {lowrank.OURS, lowrank.INPLACE, *usual, lowrank.COPY, lowrank.PRODUCTS}
    assert ran(case) == wanted


@pytest.mark.parametrize("dtype", lowrank.DTYPES, ids=str)
def test_arms_of_an_edit_agree(dtype):
    problem = lowrank.EditProblem(EDITS, dtype)
    case = Case("", "", EDITS.work(dtype), problem, lowrank.TOLERANCES[dtype])
    assert ran(case) == {lowrank.OURS, lowrank.INPLACE, lowrank.USUAL, lowrank.PLAIN}


def test_arms_of_a_basis_agree():
    shape = Bases(editors=3, rank=2, width=10)
    wanted = {lowrank.OURS, lowrank.PLAIN, lowrank.USUAL_BASIS}
    assert ran(Case("", "", shape.work, shape)) == wanted


def test_edits_beside_layers():
    case = Case("", "", LAYERS.work, LAYERS)
    assert ran(case) == {lowrank.OURS, lowrank.INPLACE, lowrank.FORWARD_OF_LAYERS}


@pytest.mark.parametrize("both", [False, True])
def test_the_products_are_as_many_as_are_counted(both):
    shape = SHAPES[1]
    work = shape.work(torch.float32, both)
    run = lowrank.products(Case("", "", work, lowrank.MixProblem(shape, torch.float32, both)))
    with FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() == work.flops


def test_the_copy_is_of_as_many_bytes_as_are_counted():
    shape = SHAPES[1]
    work = shape.work(torch.bfloat16, both=False)
    assert work.bytes == 2 * 9 * (12 + 2 * 14)
    (target,) = lowrank.copy(Case("", "", work, lowrank.MixProblem(shape, torch.bfloat16, False)))()
    assert 0 <= 2 * target.nbytes - work.bytes < 8


def test_the_dispatcher_gives_each_adapter_the_rows_it_has_a_gate_for():
    t = make_mix(SHAPES[1], torch.float32, torch.float32, both=False)
    t.gate[::2, 1] = 0
    want = lowrank.mix_run(lowrank.reference, t)()[0]
    torch.testing.assert_close(lowrank.dispatched(t), want, rtol=1e-5, atol=1e-5)


def test_what_is_written_in_place_is_new_where_it_is_compared():
    start = torch.zeros(2)
    fresh = Fresh(start)
    compared = [fresh().add_(1) for _ in range(Fresh.COMPARED)]
    assert all((x == 1).all() for x in compared) and (start == 0).all()
    assert (fresh().add_(1) == 2).all() and (start == 0).all()


def rows(seconds):
    """Every case measured, each arm in so many seconds."""
    return [
        Row(case.input, case.stage, arm, threads, case.work, timing=Timing(taken, taken, taken, 3))
        for case in lowrank.cases()
        for (arm, taken), threads in product(seconds.items(), lowrank.THREADS)
    ]


SECONDS = {
    lowrank.OURS: 1.0, lowrank.INPLACE: 1.0, lowrank.USUAL: 20.0, lowrank.PLAIN: 4.0,
    lowrank.COPY: 0.5, lowrank.PRODUCTS: 0.8, lowrank.USUAL_BASIS: 2.0,
    lowrank.FORWARD_OF_LAYERS: 50.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "arm, times, fails",
    [
        (lowrank.PRODUCTS, 0.9, [0]),
        (lowrank.USUAL, 0.3, [1, 3]),
        (lowrank.PLAIN, 0.4, [2, 4]),
        (lowrank.USUAL_BASIS, 0.7, [5]),
        (lowrank.FORWARD_OF_LAYERS, 0.9, [6]),
        (lowrank.COPY, 0.1, []),
    ],
)
def test_claims_can_fail(arm, times, fails):
    assert all(claim.held for claim in lowrank.claims(rows(SECONDS)))
    seconds = {**SECONDS, arm: SECONDS[arm] * times}
    held = [claim.held for claim in lowrank.claims(rows(seconds))]
    assert [i for i, one in enumerate(held) if not one] == fails


def test_what_was_not_measured_stays_open():
    assert [claim.held for claim in lowrank.claims([])] == [None] * 7
    assert len(lowrank.claims(rows(SECONDS))) == 7
