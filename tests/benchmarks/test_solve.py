"""The benchmark of the family `solve`: every arm finds the same, at small sizes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import solve
from benchmarks.harness import Case, Row, Timing, Work
from benchmarks.measure import prepare

SMALL = [
    solve.Shape("many tokens", 200, 24),
    solve.Shape("some tokens", 20, 24),
    solve.Shape("few tokens", 5, 24),
]
STAGES = (solve.GRAM, solve.SOLVE)


@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.name)
@pytest.mark.parametrize("stage", STAGES)
def test_arms_agree(shape, stage):
    case = Case(str(shape), stage, solve.work(shape, stage), shape, 5e-2)
    left_out, runs = prepare(solve.FAMILY, case, [1])
    assert [row.arm for row in left_out if row.wrong] == []
    assert len(runs) == (3 if stage == solve.GRAM else 2)


def test_the_limit_multiplies_as_much_as_is_counted():
    shape = SMALL[0]
    case = Case(str(shape), solve.GRAM, solve.work(shape, solve.GRAM), shape)
    with FlopCounterMode(display=False) as counter:
        solve.limit(case)()
    assert counter.get_total_flops() == case.work.flops


def test_claims_are_about_the_worst_and_open_without_rows():
    assert [claim.held for claim in solve.claims([])] == [None] * 3
    rows = [
        Row(case.input, case.stage, arm, 2, Work(1, 1), timing=Timing(seconds, 0, 1, 3))
        for case in solve.cases()
        for arm, seconds in ((solve.OURS, 1.0), (solve.AUTHORS, 2000.0), (solve.LIMIT, 0.7))
    ]
    assert [claim.held for claim in solve.claims(rows)] == [True, False, True]
    assert torch.tensor([c.measured for c in solve.claims(rows)]).tolist()[0] == 2000
