"""The benchmark of inversion circles: its cases are right, and its claims can fail."""

from __future__ import annotations

import pytest

from benchmarks import circle
from benchmarks.harness import Row, Timing


def test_arms_agree_with_the_reference():
    pytest.importorskip("diffusers")
    for case in circle.cases():
        if "1 angles" not in case.input and "batch 1," not in case.input:
            continue
        (want,) = circle.expected(case)
        for build in (circle.ours, circle.eager):
            (got,) = build(case)()
            error = (got.double() - want.double()).norm() / want.double().norm()
            assert got.dtype == want.dtype and error <= case.tolerance


def rows(share, gain):
    """Every case measured on one thread, with such a share of the copy and gain over eager."""
    seconds = Timing(median=1.0, lower=1.0, upper=1.0, runs=1)
    return [
        Row(case.input, case.stage, arm, 1, case.work, timing=seconds, times_eager=gain,
            times_limit=1 / share)
        for case in circle.cases()
        for arm in (circle.OURS, circle.REUSED)
    ]  # fmt: skip


@pytest.mark.parametrize("share, gain, held", [(0.9, 9, True), (0.8, 9, False), (0.9, 3, False)])
def test_claims_can_fail(share, gain, held):
    claims = circle.claims(rows(share, gain))
    assert len(claims) == 5
    assert all(claim.held for claim in claims) == held


def test_what_was_not_measured_stays_open():
    assert all(claim.held is None for claim in circle.claims([]))
