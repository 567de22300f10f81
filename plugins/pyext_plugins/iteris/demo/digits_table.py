"""What is shown and claimed of the digits: arms, rows, claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from pyext.report import Claim, Value
from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.demo.digits import Study, Training
from pyext_plugins.iteris.merging import Merged, merge
from pyext_plugins.iteris.peers import Modules, Options, Problem
from pyext_plugins.iteris.peers import merge as merge_by_peer
from pyext_plugins.iteris.peers.grams import collect_grams
from pyext_plugins.iteris.peers.truncation import truncate
from pyext_plugins.iteris.settings import Settings

FEW, MANY = 50, 400  # samples of a task
ROUNDS = 20  # more than there are linear maps in a row
RANK = 8
ALONE, BASE, MEAN = "each LoRA alone", "base", "mean"
DELTA, FULL = "IterIS delta", "IterIS full"
DELTA_NO_ALPHA = "IterIS delta, alpha 0"
AFTER, INSIDE = f"rank {RANK} by an SVD afterwards", f"rank {RANK} in the sweep"
_PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    MEAN: ("mean", {}),
    "peft linear": ("peft-linear", {}),
    "RegMean": ("regmean", {"shrink": 1.0}),
    "RegMean, off-diagonal 0.9": ("regmean", {"shrink": 0.9}),
}
REGMEANS = ("RegMean", "RegMean, off-diagonal 0.9", "RegMean, alpha and weights of IterIS")
_ITERIS: dict[str, dict[str, Any]] = {
    REGMEANS[2]: {"schedule": "iterate", "rounds": 1},
    f"{DELTA}, 3 rounds": {"schedule": "iterate", "rounds": 3},
    DELTA: {},
    DELTA_NO_ALPHA: {"alpha": 0.0},
    FULL: {"target": "full"},
    f"{DELTA}, {INSIDE}": {"rank": RANK},
    f"{FULL}, {INSIDE}": {"target": "full", "rank": RANK},
}
ARMS = (ALONE, BASE, *_PEERS, *_ITERIS, f"{DELTA}, {AFTER}", f"{FULL}, {AFTER}")


@dataclass
class Results:
    """What was measured.

    Args:
        accuracies: by arm and number of samples, a list over the tasks for each seed, in percent.
        gap: how far sweep and converged iteration differ, relative, the largest of all.
        merged: an IterIS merger, for its residuals.
    """

    accuracies: dict[tuple[str, int], list[list[float]]] = field(default_factory=dict)
    gap: float = 0.0
    merged: Merged | None = None

    def mean(self, arm: str, samples: int) -> float:
        """Over tasks and seeds."""
        return mean(mean(own) for own in self.accuracies[arm, samples])

    def least(self, arm: str, samples: int) -> float:
        """Of all tasks and seeds."""
        return min(min(own) for own in self.accuracies[arm, samples])


def measure(
    folder: Path,
    seeds: Sequence[int],
    training: Training | None = None,
    shown: Callable[[int], None] = lambda done: None,
) -> Results:
    """Train, merge in all ways, and measure.

    Args:
        folder: where base and LoRAs are kept.
        training: of bases and LoRAs.
        shown: called with the number of seeds that are done.
    """
    results = Results()
    for done, seed in enumerate(seeds):
        study = Study(folder, seed, training or Training())
        for samples in (FEW, MANY):
            _measure(results, study, samples)
        shown(done + 1)
    return results


def _measure(results: Results, study: Study, samples: int) -> None:
    def note(arm: str, found: list[float]) -> None:
        results.accuracies.setdefault((arm, samples), []).append(found)

    note(ALONE, study.alone())
    note(BASE, study.accuracies({}))
    tasks = study.tasks(samples)
    grams = collect_grams(study.base, tasks)
    for arm, (name, options) in _PEERS.items():
        problem = Problem(tasks, Options(**options), lambda: grams)
        note(arm, study.accuracies(merge_by_peer(name, problem)))
    merged = {
        arm: merge(study.base, tasks, Settings(**settings)) for arm, settings in _ITERIS.items()
    }
    for arm, own in merged.items():
        note(arm, study.accuracies(own.modules))
    for arm in (DELTA, FULL):
        note(f"{arm}, {AFTER}", study.accuracies(truncate(merged[arm].modules, RANK)))
    if samples == FEW:
        iterated = merge(study.base, tasks, Settings(schedule="iterate", rounds=ROUNDS))
        results.gap = max(results.gap, _gap(iterated.modules, merged[DELTA].modules))
    results.merged = results.merged or merged[DELTA]


def _gap(one: Modules, other: Modules) -> float:
    """The largest relative difference of two mergers' updates."""

    def differ(first: LowRank, second: LowRank) -> float:
        return float((first.delta() - second.delta()).norm() / second.delta().norm())

    return max(differ(one[name], other[name]) for name in other)


def rows(results: Results) -> list[dict[str, Value]]:
    """A row for each arm: means over tasks and seeds, and the least of all."""
    return [
        {
            "method": arm,
            **{
                f"{what}, n = {samples} (%)": round(of(arm, samples), 1)
                for samples in (FEW, MANY)
                for what, of in (("mean", results.mean), ("least", results.least))
            },
        }
        for arm in ARMS
    ]


def claims(results: Results) -> list[Claim]:
    """The orderings, on the mean over tasks and seeds."""
    found = []
    for samples in (FEW, MANY):
        best = max(REGMEANS, key=lambda arm: results.mean(arm, samples))
        order = (ALONE, FULL, DELTA, best, MEAN, BASE)
        for above, below in zip(order, order[1:], strict=False):
            gap = results.mean(above, samples) - results.mean(below, samples)
            name = "the best RegMean" if below == best else below
            text = f"n = {samples}: {'the best RegMean' if above == best else above} over {name}"
            found.append(Claim(f"{text}, points", gap, ">=", 0))
        if samples == MANY:
            gap = results.mean(DELTA, samples) - results.mean(best, samples)
            text = f"n = {samples}: {DELTA} over the best RegMean by 3 points"
            found.append(Claim(text, gap, ">=", 3))
    gap = results.mean(DELTA, FEW) - results.mean(DELTA_NO_ALPHA, FEW)
    found.append(Claim(f"n = {FEW}: alpha 1e-4 over alpha 0, points", gap, ">=", 1))
    for arm in (DELTA, FULL):
        gap = results.mean(f"{arm}, {INSIDE}", MANY) - results.mean(f"{arm}, {AFTER}", MANY)
        text = f"n = {MANY}: {arm}: {INSIDE} over {AFTER}, points"
        found.append(Claim(text, gap, ">=", 0))
    text = "sweep and converged iteration differ by, relative, at most"
    found.append(Claim(text, results.gap, "<=", 1e-6))
    return found
