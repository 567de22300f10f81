"""Runs a family: checks every arm, then times them in turn, the machine's limits among them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from benchmarks.harness import Case, Family, Limits, Outputs, Row, Run, Timing, Unavailable
from pyext.runtime import fma_peak

Clock = Callable[[], float]
Sample = Callable[[], float]
Progress = Callable[[str, float], None]

MIN_ROUNDS = 3  # fewer have no quartiles
TURN_SECONDS = 0.05  # a quick arm runs several times in its turn
PROBE_SECONDS = 0.02
COPY_BYTES = 2**28  # far more than any cache holds


@contextmanager
def intraop_threads(count: int) -> Iterator[None]:
    """Run a block at a number of intra-op threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interleave(
    samples: Sequence[Sample], seconds: float, clock: Clock, progress: Callable[[float], None]
) -> list[list[float]]:
    """Let all take turns until the seconds are spent, at least `MIN_ROUNDS` times.

    What disturbs the machine for a while so disturbs all of them, and their ratios stay true.
    """
    results: list[list[float]] = [[] for _ in samples]
    start = clock()
    rounds = 0
    while rounds < MIN_ROUNDS or clock() - start < seconds:
        for sample, result in zip(samples, results, strict=True):
            turn = clock()
            result.append(sample())
            while clock() - turn < TURN_SECONDS:
                result.append(sample())
        rounds += 1
        progress(min(rounds / MIN_ROUNDS, (clock() - start) / seconds, 1.0))
    return results


def summarize(samples: Sequence[float]) -> Timing:
    """Median and quartiles of at least two samples."""
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median=median, lower=lower, upper=upper, runs=len(samples))


def compare(outputs: Outputs, expected: Outputs) -> tuple[float, float]:
    """Largest difference and relative error of the worst output; infinite where shapes differ."""
    if [x.shape for x in outputs] != [x.shape for x in expected]:
        return float("inf"), float("inf")
    largest, error = 0.0, 0.0
    for x, y in zip(outputs, expected, strict=True):
        wanted = y.detach().cpu().double()
        difference = x.detach().cpu().double() - wanted
        if not difference.isfinite().all():
            return float("inf"), float("inf")
        tiny = torch.finfo(torch.float32).tiny
        if difference.numel():
            largest = max(largest, float(difference.abs().max() / wanted.abs().max().clamp(tiny)))
            error = max(error, float(difference.norm() / wanted.norm().clamp(tiny)))
    return largest, error


def run_family(
    family: Family,
    threads: Sequence[int],
    seconds: float,
    progress: Progress = lambda label, done: None,
    clock: Clock = time.perf_counter,
) -> list[Row]:
    """Measure every arm in every case at every thread count.

    Args:
        family: what to measure.
        threads: numbers of intra-op threads, all in the same rounds.
        seconds: for the timing of all cases together; checks and slow arms may need more.
        progress: called with what is being done and the share of it that is done.
        clock: gives seconds.
    """
    cases = list(family.cases())
    copy = CopyProbe(clock)
    rows: list[Row] = []
    for case in cases:
        label = f"{case.input}, {case.stage}"
        progress(f"{label}: checking", 0.0)
        prepared, runs = _prepare(family, case, threads)
        samples = [_at(count, _timed(run, clock)) for _, count, run in runs]
        for count in threads:
            samples += [_at(count, copy), _at(count, lambda: fma_peak(PROBE_SECONDS))]
        results = interleave(samples, seconds / len(cases), clock, partial(progress, label))
        rates = [statistics.median(result) for result in results[len(runs) :]]
        limits = {count: Limits(*rates[2 * i : 2 * i + 2]) for i, count in enumerate(threads)}
        timed = [
            replace(row, threads=count, timing=summarize(result), limits=limits[count])
            for (row, count, _), result in zip(runs, results, strict=False)
        ]
        rows += _against_baseline(timed, family.baseline) + prepared
    return rows


class CopyProbe:
    """Copies a large tensor; gives the bytes read and written per second."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.source = torch.ones(COPY_BYTES // 8)
        self.target = torch.zeros_like(self.source)

    def __call__(self) -> float:
        start = self.clock()
        self.target.copy_(self.source)
        return COPY_BYTES / (self.clock() - start)


def _at(threads: int, sample: Sample) -> Sample:
    def at_threads() -> float:
        with intraop_threads(threads):
            return sample()

    return at_threads


def _timed(run: Run, clock: Clock) -> Sample:
    def seconds() -> float:
        start = clock()
        run()
        return clock() - start

    return seconds


def _prepare(
    family: Family, case: Case, threads: Sequence[int]
) -> tuple[list[Row], list[tuple[Row, int, Run]]]:
    """Rows of the arms that are not to be timed; row, threads and run of what is."""
    expected = family.expected(case)
    left_out: list[Row] = []
    runs: list[tuple[Row, int, Run]] = []
    for name, build in family.arms.items():
        row = Row(input=case.input, stage=case.stage, arm=name, threads=None, work=case.work)
        try:
            run = build(case)
        except Unavailable as reason:
            left_out.append(replace(row, skipped=str(reason)))
            continue
        largest, error = compare(run(), expected)
        row = replace(row, max_difference=largest, relative_error=error)
        if error > family.tolerance:
            left_out.append(replace(row, wrong=True))
        else:
            runs += [(row, count, run) for count in threads]
    return left_out, runs


def _against_baseline(rows: Sequence[Row], baseline: str) -> list[Row]:
    """The rows with how many times faster they are than the baseline at the same threads."""
    eager = {row.threads: row.timing.median for row in rows if row.arm == baseline and row.timing}
    return [
        replace(row, times_eager=eager[row.threads] / row.timing.median)
        if row.timing and row.threads in eager
        else row
        for row in rows
    ]
