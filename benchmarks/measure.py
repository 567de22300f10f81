"""Runs a family: checks every arm, then times them in turn, the machine's limits among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.harness import Case, Family, Limits, Outputs, Row, Run, Unavailable
from benchmarks.limits import best_of, probes
from benchmarks.turns import (
    MIN_SAMPLES,
    MIN_SLOW_SAMPLES,
    Clock,
    Sample,
    at_threads,
    interleave,
    summarize,
    timed,
    wall_clock,
)
from pyext.runtime import use_threads

Progress = Callable[[str, float], None]


def run_family(
    family: Family,
    threads: Sequence[int],
    seconds: float,
    progress: Progress = lambda label, done: None,
    clock: Clock = wall_clock,
    limits: Callable[[Clock], tuple[Sample, Sample]] = probes,
) -> list[Row]:
    """Measure every arm in every case at every thread count.

    Args:
        family: what to measure.
        threads: numbers of intra-op threads, all in the same rounds.
        seconds: for the timing of all cases together; checks and slow arms need more.
        progress: called with what is being done and the share of the whole that is done.
        clock: gives seconds.
        limits: makes the samples of the machine's copy bandwidth and FMA peak.
    """
    cases = list(family.cases())
    machine = limits(clock) if family.limit is None else ()
    rows: list[Row] = []
    for index, case in enumerate(cases):
        tell = part_of(progress, index, len(cases))
        rows += measure_case(family, case, threads, seconds / len(cases), tell, clock, machine)
    progress("done", 1.0)
    return against_best(rows)


def measure_case(
    family: Family,
    case: Case,
    threads: Sequence[int],
    seconds: float,
    progress: Progress,
    clock: Clock,
    machine: Sequence[Sample],
) -> list[Row]:
    """Rows of one case: the timed ones, then those that were left out."""
    name = f"{case.input}, {case.stage}"
    threads, least = ([max(threads)], MIN_SLOW_SAMPLES) if case.slow else (threads, MIN_SAMPLES)
    progress(f"{name}: checking", 0.0)
    left_out, runs = prepare(family, case, threads)
    samples = [at_threads(count, timed(run, clock)) for _, count, run in runs]
    samples += [at_threads(count, probe) for count in threads for probe in machine]
    told = partial(progress, f"{name}: timing")
    results = interleave(samples, seconds, clock, told, least)
    bandwidths, peaks = results[len(runs) :: 2], results[len(runs) + 1 :: 2]
    # A family with a limit of its own has no samples of the machine's.
    limits = dict(zip(threads, map(best_of, bandwidths, peaks), strict=bool(machine)))
    measured = [
        replace(
            row,
            timing=summarize(result),
            limits=limits.get(count) if family.arms[row.arm].device == "cpu" else None,
        )
        for (row, count, _), result in zip(runs, results, strict=False)
    ]
    return against_arms(measured, family) + left_out


def against_best(rows: Sequence[Row]) -> list[Row]:
    """The rows with the best limits seen at their number of threads in any of the cases."""
    seen: dict[int | None, list[Limits]] = {}
    for row in rows:
        if row.limits:
            seen.setdefault(row.threads, []).append(row.limits)
    best = {
        threads: best_of([x.bandwidth for x in limits], [x.fma_peak for x in limits])
        for threads, limits in seen.items()
    }
    return [replace(row, limits=best[row.threads]) if row.limits else row for row in rows]


def part_of(progress: Progress, index: int, count: int) -> Progress:
    """Progress of one of ``count`` equal parts, told as progress of the whole."""
    return lambda label, done: progress(label, (index + done) / count)


def prepare(
    family: Family, case: Case, threads: Sequence[int]
) -> tuple[list[Row], list[tuple[Row, int, Run]]]:
    """Rows of the arms that are not to be timed; row, threads and run of those that are.

    Every arm is run and checked at every thread count, which also warms it up.
    """
    expected = family.expected(case)
    left_out: list[Row] = []
    runs: list[tuple[Row, int, Run]] = []
    for name, arm in family.arms.items():
        row = Row(input=case.input, stage=case.stage, arm=name, threads=None, work=case.work)
        try:
            run = arm.build(case)
        except Unavailable as reason:
            left_out.append(replace(row, skipped=str(reason)))
            continue
        for count in threads:
            checked = replace(row, threads=count)
            with use_threads(count):
                outputs = run()
            if name not in family.limiting:
                checked = check(checked, outputs, expected, case.tolerance or family.tolerance)
            if checked.wrong:
                left_out.append(checked)
            else:
                runs.append((checked, count, run))
    return left_out, runs


def check(row: Row, outputs: Outputs, expected: Outputs, tolerance: float) -> Row:
    """The row with how far its outputs are from the expected ones, and whether that is too far."""
    difference = compare(outputs, expected)
    if difference is None:
        return replace(row, wrong=True)
    largest, error = difference
    return replace(row, max_difference=largest, relative_error=error, wrong=error > tolerance)


def compare(outputs: Outputs, expected: Outputs) -> tuple[float, float] | None:
    """Largest difference and relative error of the worst output.

    None where shapes differ or an output is not finite.
    """
    if [x.shape for x in outputs] != [x.shape for x in expected]:
        return None
    tiny = torch.finfo(torch.float32).tiny
    largest, error = 0.0, 0.0
    for x, y in zip(outputs, expected, strict=True):
        wanted = y.detach().cpu().double()
        difference = x.detach().cpu().double() - wanted
        if not difference.isfinite().all():
            return None
        if difference.numel():
            largest = max(largest, float(difference.abs().max() / wanted.abs().max().clamp(tiny)))
            error = max(error, float(difference.norm() / wanted.norm().clamp(tiny)))
    return largest, error


def against_arms(rows: Sequence[Row], family: Family) -> list[Row]:
    """The rows with their times against the baseline's and the limit's at the same threads."""
    eager = medians(rows, family.baseline)
    limit: dict[int | None, float] = {}
    for arm in family.limiting:
        for threads, seconds in medians(rows, arm).items():
            limit[threads] = max(seconds, limit.get(threads, 0.0))
    return [
        replace(
            row,
            times_eager=eager[row.threads] / row.timing.median if row.threads in eager else None,
            times_limit=row.timing.median / limit[row.threads] if row.threads in limit else None,
        )
        if row.timing
        else row
        for row in rows
    ]


def medians(rows: Sequence[Row], arm: str) -> dict[int | None, float]:
    """Seconds of an arm, by number of threads."""
    return {row.threads: row.timing.median for row in rows if row.arm == arm and row.timing}
