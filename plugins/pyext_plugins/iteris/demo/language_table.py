"""What is shown and claimed of the texts: arms, rows, claims."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from pyext.report import Claim, Value
from pyext_plugins.iteris.demo.language import Study
from pyext_plugins.iteris.merging import Merged, merge
from pyext_plugins.iteris.peers import PEERS, Modules, Options, Problem
from pyext_plugins.iteris.peers import merge as merge_by_peer
from pyext_plugins.iteris.peers.grams import collect_grams
from pyext_plugins.iteris.settings import Settings

SAMPLES = 50  # texts of a task, without labels
ALONE, BASE = "each LoRA alone", "base"
DELTA, FULL = "IterIS delta", "IterIS full"
ITERIS: dict[str, dict[str, Any]] = {
    DELTA: {},
    f"{DELTA}, rank 8": {"rank": 8},
    FULL: {"target": "full"},
    f"{FULL}, rank 8": {"target": "full", "rank": 8},
}
TITLE = "MiniLM reads five kinds of text: accuracy on held-out texts (%)"


@dataclass
class Results:
    """What was measured.

    Args:
        accuracies: by arm, one a task, in percent.
        seconds: that merging took, by arm.
        ranks: the largest of the result, by arm.
        merged: an IterIS merger, for its residuals.
    """

    names: tuple[str, ...]
    accuracies: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    merged: Merged | None = None


def measure(study: Study, shown: Callable[[int], None] = lambda done: None) -> Results:
    """Merge in all ways, and measure.

    Args:
        shown: called with the number of arms that are done.
    """
    results = Results(tuple(study.names))
    results.accuracies = {ALONE: study.alone(), BASE: study.accuracies({})}
    tasks = study.tasks(SAMPLES)

    def note(arm: str, make: Callable[[], Modules]) -> None:
        began = time.perf_counter()
        modules = make()
        results.seconds[arm] = time.perf_counter() - began
        results.ranks[arm] = max(update.rank for update in modules.values())
        results.accuracies[arm] = study.accuracies(modules)
        shown(len(results.seconds))

    def by_peer(name: str) -> Modules:
        grams = (lambda: collect_grams(study.encoder, tasks)) if name == "regmean" else None
        return merge_by_peer(name, Problem(tasks, Options(), grams, study.score))

    def by_iteris(settings: Mapping[str, Any]) -> Modules:
        merged = merge(study.encoder, tasks, Settings(**settings))
        results.merged = results.merged or merged
        return merged.modules

    for name in PEERS:
        note(name, lambda name=name: by_peer(name))  # type: ignore[misc]
    for arm, settings in ITERIS.items():
        note(arm, lambda settings=settings: by_iteris(settings))  # type: ignore[misc]
    return results


def rows(results: Results) -> list[dict[str, Value]]:
    """A row for each arm."""
    return [
        {
            "method": arm,
            "mean": round(mean(found), 1),
            **{name: round(value, 1) for name, value in zip(results.names, found, strict=True)},
            "rank": results.ranks.get(arm),
            "merged in (s)": round(results.seconds[arm], 1) if arm in results.seconds else None,
        }
        for arm, found in results.accuracies.items()
    ]


def claims(results: Results | None) -> list[Claim]:
    """On the means; open where nothing was measured."""
    order = (ALONE, DELTA, "regmean", "mean", BASE)
    found = []
    for above, below in zip(order, order[1:], strict=False):
        gap = None
        if results is not None:
            gap = mean(results.accuracies[above]) - mean(results.accuracies[below])
        found.append(Claim(f"texts: {above} over {below}, points", gap, ">=", 0))
    return found
