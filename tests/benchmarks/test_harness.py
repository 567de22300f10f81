"""The harness on a fake clock: nothing here times anything real."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import report
from benchmarks.harness import Limits, Row, Timing, Work, families, load_family
from benchmarks.measure import against_best, compare, run_family
from benchmarks.turns import (
    MIN_SAMPLES,
    MIN_SLOW_SAMPLES,
    TURN_SECONDS,
    interleave,
    summarize,
)
from pyext.report import Claim
from tests.benchmarks.fake_family import (
    BANDWIDTH,
    ONE_THREAD_PEAK,
    FakeClock,
    fake_limits,
    make_family,
)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def rows(clock):
    return run_family(make_family(clock), [1, 2], 8.0, clock=clock, limits=fake_limits)


def find(rows, arm, threads):
    (row,) = (row for row in rows if (row.arm, row.threads) == (arm, threads))
    return row


def sample(clock, name, seconds):
    def take():
        clock.advance(name, seconds)
        return seconds

    return take


# Turns


def test_equal_ones_alternate(clock):
    samples = [sample(clock, name, 0.25) for name in "abc"]
    interleave(samples, 3.0, clock, lambda done: None)
    assert clock.log == ["a", "b", "c"] * 4


def test_a_quick_one_samples_several_times_in_its_turn(clock):
    seconds = TURN_SECONDS / 4
    interleave(
        [sample(clock, "quick", seconds), sample(clock, "slow", 1.0)], 1.0, clock, lambda done: None
    )
    assert clock.log[:5] == ["quick"] * 4 + ["slow"]


def test_the_first_of_several_samples_in_a_turn_does_not_count(clock):
    cold = iter([9.0, 1.0, 1.0, 1.0] * 100)

    def quick():
        clock.now += TURN_SECONDS * 0.3  # four in a turn
        return next(cold)

    (result,) = interleave([quick], 1.0, clock, lambda done: None)
    assert len(result) >= 9 and set(result) == {1.0}


def test_a_slow_one_waits_until_the_others_caught_up_and_still_gets_its_samples(clock):
    quick, slow = interleave(
        [sample(clock, "quick", 0.25), sample(clock, "slow", 4.0)], 9.0, clock, lambda done: None
    )
    assert clock.log[:18] == ["quick", "slow"] + ["quick"] * 15 + ["slow"]
    assert len(slow) == MIN_SAMPLES
    assert len(quick) > 15


def test_no_seconds_still_give_everyone_the_fewest_samples(clock):
    results = interleave([sample(clock, "a", 1.0)] * 2, 0.0, clock, lambda done: None)
    assert [len(result) for result in results] == [MIN_SAMPLES] * 2


def test_slow_cases_are_measured_on_the_most_threads_alone(clock):
    family = make_family(clock)
    (case,) = family.cases()
    family.cases = lambda: iter([replace(case, slow=True)])
    rows = run_family(family, [1, 2], 0.0, clock=clock, limits=fake_limits)
    timed = [row for row in rows if row.timing]
    assert {(row.threads, row.timing.runs) for row in timed} == {(2, MIN_SLOW_SAMPLES)}


def test_progress_rises_to_one(clock):
    told = []
    interleave([sample(clock, "a", 1.0)] * 2, 10.0, clock, told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_median_and_quartiles():
    assert summarize([5.0, 1.0, 2.0, 4.0, 3.0]) == Timing(median=3.0, lower=2.0, upper=4.0, runs=5)


# Rows


def test_arms_are_timed_at_every_thread_count_and_compared_with_eager_at_the_same(rows):
    assert find(rows, "quick", 1).timing.median == 0.5
    assert find(rows, "quick", 2).timing.median == 0.25
    assert find(rows, "eager", 1).times_eager == 1.0
    assert find(rows, "quick", 1).times_eager == 4.0
    assert find(rows, "quick", 2).times_eager == 8.0


def test_shares_are_of_the_best_the_machine_did(rows):
    row = find(rows, "quick", 1)
    assert row.limits == Limits(bandwidth=BANDWIDTH, fma_peak=ONE_THREAD_PEAK)
    assert (row.limit, row.share_of_limit) == ("FMA", 8 / 64 / 0.5)
    assert find(rows, "quick", 2).limits.fma_peak == 2 * ONE_THREAD_PEAK


def test_the_best_of_all_cases_is_the_limit_of_each():
    rows = [
        Row("i", stage, "a", threads, Work(1, 1), limits=limits)
        for stage, threads, limits in [
            ("first", 1, Limits(bandwidth=1.0, fma_peak=6.0)),
            ("second", 1, Limits(bandwidth=2.0, fma_peak=5.0)),
            ("first", 2, Limits(bandwidth=3.0, fma_peak=9.0)),
            ("left out", None, None),
        ]
    ]
    one, two = Limits(2.0, 6.0), Limits(3.0, 9.0)
    assert [row.limits for row in against_best(rows)] == [one, one, two, None]


def test_the_limit_is_the_one_that_allows_least():
    row = Row("i", "s", "a", 1, Work(flops=1, bytes=8), timing=Timing(4.0, 4.0, 4.0, 3))
    row = Row(**{**vars(row), "limits": Limits(bandwidth=4.0, fma_peak=2.0)})
    assert (row.limit, row.share_of_limit) == ("copy", 0.5)
    assert row.share_of_fma_peak == 0.125


def test_wrong_results_are_not_timed(clock, rows):
    for arm in ("wrong", "not finite"):
        for threads in (1, 2):
            row = find(rows, arm, threads)
            assert row.wrong and row.timing is None
        assert clock.log.count(arm) == 2  # the checks
    assert find(rows, "wrong", 1).relative_error == pytest.approx(0.05)
    assert find(rows, "not finite", 1).relative_error is None


def test_an_arm_on_another_device_has_no_share_of_the_processor(clock):
    family = make_family(clock)
    family.arm("device", device="cuda")(family.arms["quick"].build)
    rows = run_family(family, [1], 8.0, clock=clock, limits=fake_limits)
    row = find(rows, "device", 1)
    assert row.timing and row.times_eager
    assert row.share_of_limit is row.share_of_fma_peak is row.limit is None


def test_a_case_may_have_its_own_tolerance(clock):
    family = make_family(clock)
    (case,) = family.cases()
    family.cases = lambda: iter([replace(case, tolerance=0.06)])
    rows = run_family(family, [1], 8.0, clock=clock, limits=fake_limits)
    assert find(rows, "wrong", 1).timing and not find(rows, "wrong", 1).wrong


def test_a_limit_of_the_familys_is_not_compared_and_replaces_the_machines(clock):
    family = replace(make_family(clock), limit="wrong")
    rows = run_family(family, [1, 2], 8.0, clock=clock, limits=fake_limits)
    limit, quick = find(rows, "wrong", 2), find(rows, "quick", 2)
    assert limit.relative_error is None and not limit.wrong
    assert (limit.times_limit, quick.times_limit) == (1.0, 0.25)
    assert (quick.share_of_limit, quick.limits, quick.times_eager) == (4.0, None, 8.0)
    assert not {"copy", "peak"} & set(clock.log)


def test_of_several_limits_the_slowest_counts(clock):
    family = replace(make_family(clock), limit=("wrong", "absent", "eager"))
    rows = run_family(family, [1, 2], 8.0, clock=clock, limits=fake_limits)
    limit, quick = find(rows, "eager", 2), find(rows, "quick", 2)
    assert (limit.times_limit, quick.times_limit) == (1.0, 0.125)


def test_the_reason_of_a_skip_is_kept(rows):
    row = find(rows, "absent", None)
    assert row.skipped == "absent is not installed"
    assert row.timing is None and not row.wrong


def test_the_number_of_threads_is_put_back(rows, clock):
    before = torch.get_num_threads()
    run_family(make_family(clock), [before + 1], 0.0, clock=clock, limits=fake_limits)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "outputs",
    [
        [torch.ones(2)],
        [torch.ones(2), torch.ones(4)],
        [torch.ones(2), torch.tensor([1, 1, torch.nan])],
    ],
)
def test_outputs_that_cannot_be_compared(outputs):
    assert compare(outputs, [torch.ones(2), torch.ones(3)]) is None


def test_the_worst_output_decides():
    expected = [torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])]
    outputs = [torch.tensor([3.0, 4.5]), torch.tensor([1.0, 2.0])]
    assert compare(outputs, expected) == (0.5, 0.5)


# Families


def test_an_arm_name_is_taken_once(clock):
    family = make_family(clock)
    with pytest.raises(ValueError, match="family 'fake' already has an arm 'quick'"):
        family.arm("quick")(lambda case: list)


def test_families_are_those_of_the_ops():
    assert "splat" in families()
    assert "scenes" not in families()
    with pytest.raises(ValueError, match="no benchmarks for family 'scenes'; there are: .*splat"):
        load_family("scenes")


# What a run leaves


@pytest.fixture
def run(monkeypatch, clock, rows, tmp_path):
    """Runs the fake family as `pyext bench` does; ``wanted`` is what its claim wants."""

    def main_run(wanted):
        family = make_family(clock)
        family.claims = lambda rows: [
            Claim("quick", find(rows, "quick", 1).times_eager, ">=", wanted)
        ]
        monkeypatch.setattr(report, "load_family", lambda name: family)
        monkeypatch.setattr(report, "run_family", lambda *args, **kwargs: rows)
        return report.main_run("fake", [1, 2], None, tmp_path / "out")

    return main_run


def test_a_failed_claim_fails_the_run_and_is_shown(run, tmp_path, capsys):
    assert run(wanted=3)
    assert "FAILED" not in capsys.readouterr().out
    assert not run(wanted=5)
    assert "FAILED" in capsys.readouterr().out
    assert "| quick | 4 | >= 5 | FAILED |" in (tmp_path / "out/fake.md").read_text()


def test_json_holds_all_figures_and_the_machine(run, rows, tmp_path):
    run(wanted=3)
    figures = json.loads((tmp_path / "out/fake.json").read_text())
    assert figures["settings"] == {"threads": [1, 2], "seconds": 8}
    assert {"commit", "processor", "versions"} <= set(figures["environment"])
    assert figures["claims"] == [
        {"text": "quick", "measured": 4.0, "relation": ">=", "wanted": 3, "held": True}
    ]
    stored = [row for row in figures["rows"] if (row["arm"], row["threads"]) == ("quick", 2)]
    row = find(rows, "quick", 2)
    assert len(figures["rows"]) == len(rows)
    assert Timing(**stored[0]["timing"]) == row.timing
    assert Limits(**stored[0]["limits"]) == row.limits
    assert Work(**stored[0]["work"]) == row.work
    assert stored[0]["share_of_limit"] == row.share_of_limit


def test_all_that_was_left_out_is_told_with_its_reason(run, tmp_path, capsys):
    run(wanted=3)
    expected = [
        "not timed: wrong: wrong result: relative error 5.0e-02 (double)",
        "not timed: not finite: wrong result: another shape, or not finite (double)",
        "not timed: absent: absent is not installed (double)",
    ]
    printed, written = capsys.readouterr().out, (tmp_path / "out/fake.md").read_text()
    for line in expected:
        assert line in printed and line in written


def test_the_plot_is_a_picture(run, tmp_path):
    run(wanted=3)
    assert (tmp_path / "out/fake.png").read_bytes().startswith(b"\x89PNG")


def test_every_input_has_its_table(rows):
    other = replace(rows[0], input="letters", skipped="no letters", timing=None)
    written = report.as_markdown([*rows, other], [])
    numbers, letters = written.split("letters\n", 1)
    assert numbers.startswith("numbers\n") and numbers.count("| stage |") == 1
    assert "no letters" in letters and "no letters" not in numbers


def test_the_table_holds_rows_against_the_familys_limit_if_it_has_one(rows):
    assert report.table(rows)[0]["share of the limit"] == "25.0% of FMA"
    (line,) = report.table([replace(rows[0], times_limit=1.25)])
    assert line["times the limit"] == "1.25" and "share of the limit" not in line
