"""The benchmark of the family `solve`: every arm finds the same, at small sizes."""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import solve
from benchmarks.harness import Case, Row, Timing, Work
from benchmarks.measure import prepare

SMALL = [
    solve.Shape("many tokens", 200, 24),
    solve.Shape("some tokens", 20, 24),
    solve.Shape("few tokens", 5, 24),
    solve.Shape("fewer outputs", 200, 24, 10),
    solve.Shape("few tokens, more outputs", 5, 24, 30),
]
ARMS = {solve.GRAM: 3, solve.GRAM64: 2, solve.SOLVE: 3}


@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.name)
@pytest.mark.parametrize("stage", ARMS)
def test_arms_agree(shape, stage):
    case = Case(str(shape), stage, solve.work(shape, stage), shape, 5e-2)
    left_out, runs = prepare(solve.FAMILY, case, [1])
    assert [row.arm for row in left_out if row.wrong] == []
    assert len(runs) == ARMS[stage]


@pytest.mark.parametrize("stage", [solve.GRAM, solve.GRAM64])
def test_the_limit_multiplies_as_much_as_is_counted(stage):
    shape = SMALL[0]
    case = Case(str(shape), stage, solve.work(shape, stage), shape)
    with FlopCounterMode(display=False) as counter:
        solve.limit(case)()
    assert counter.get_total_flops() == case.work.flops


def test_claims_are_about_the_worst_and_open_without_rows():
    assert [claim.held for claim in solve.claims([])] == [None] * 4
    arms = {solve.OURS: 1.0, solve.OURS64: 0.9, solve.AUTHORS: 2000.0, solve.LIMIT: 0.7}
    rows = [
        Row(
            *(case.input, case.stage, arm, threads, Work(1, 1)),
            relative_error=1e-6 * (1 + seconds),
            timing=Timing(seconds, 0, 1, 3),
        )
        for case in solve.cases()
        for threads in ([2] if case.slow else [1, 2])
        for arm, seconds in arms.items()
    ]
    assert [claim.held for claim in solve.claims(rows)] == [True, True, False, True]
    assert [c.measured for c in solve.claims(rows)] == pytest.approx([2000, 2 / 2001, 0.7, 2000])
