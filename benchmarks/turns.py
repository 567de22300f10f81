"""Taking turns: how samples of many things are spread over the time there is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from benchmarks.harness import Run, Timing
from pyext.runtime import use_threads

Clock = Callable[[], float]
Sample = Callable[[], float]

MIN_SAMPLES = 3
MIN_SLOW_SAMPLES = 2  # fewer have no quartiles
TURN_SECONDS = 0.1  # a quick one samples several times in its turn

wall_clock: Clock = time.perf_counter


def interleave(
    samples: Sequence[Sample],
    seconds: float,
    clock: Clock,
    progress: Callable[[float], None],
    least: int = MIN_SAMPLES,
) -> list[list[float]]:
    """Let all take turns until the seconds are spent and all have ``least`` samples.

    What disturbs the machine for a while so disturbs all of them, and their ratios stay true. One
    that has had more than a turn above the least-served passes until the others have caught up, so
    that quick ones are sampled all along; once the seconds are spent none passes. The first of
    several samples in a turn does not count: it finds caches and allocator as another left them.
    """
    results: list[list[float]] = [[] for _ in samples]
    spent = [0.0] * len(samples)
    start = clock()

    def elapsed() -> float:
        return clock() - start

    while elapsed() < seconds or min(map(len, results)) < least:
        for i, sample in enumerate(samples):
            if elapsed() < seconds and spent[i] > min(spent) + TURN_SECONDS:
                continue
            turn = clock()
            taken = [sample()]
            while clock() - turn < TURN_SECONDS:
                taken.append(sample())
            results[i] += taken[1:] or taken
            spent[i] += clock() - turn
        fewest = min(map(len, results)) / least
        progress(min(fewest, elapsed() / seconds if seconds else 1.0, 1.0))
    return results


def summarize(samples: Sequence[float]) -> Timing:
    """Median and quartiles of at least two samples."""
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median=median, lower=lower, upper=upper, runs=len(samples))


def at_threads(count: int, sample: Sample) -> Sample:
    """The same sample, taken at a number of intra-op threads."""

    def sample_at_threads() -> float:
        with use_threads(count):
            return sample()

    return sample_at_threads


def timed(run: Run, clock: Clock) -> Sample:
    """A sample of the seconds a run takes."""

    def seconds() -> float:
        start = clock()
        run()
        return clock() - start

    return seconds
