"""A peer as the command `merge` runs it: in one step, with a row for each module."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version

import torch
from torch import Tensor, nn

from pyext.report import Report, Value
from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.merging import Merged
from pyext_plugins.iteris.peers.grams import collect_grams
from pyext_plugins.iteris.peers.registry import Grams, Modules, Options, Problem, Score, merge
from pyext_plugins.iteris.settings import Settings
from pyext_plugins.iteris.tasks import Task


def problem_of(
    model: nn.Module, tasks: Sequence[Task], settings: Settings, score: Score | None = None
) -> Problem:
    """A peer's problem from what IterIS is given: weights become shares, and of the settings rank
    and seed count. Grams are collected once, when they are first asked for."""
    total = sum(task.weight for task in tasks)
    weights = tuple(task.weight / total for task in tasks)
    options = Options(weights, rank=settings.rank, seed=settings.seed)
    kept: list[Sequence[Grams]] = []

    def grams() -> Sequence[Grams]:
        if not kept:
            kept.append(collect_grams(model, tasks))
        return kept[0]

    sampled = all(task.batches for task in tasks)
    return Problem(tasks, options, grams if sampled else None, score)


class PeerMerging:
    """Merging by a peer, in one step.

    Args:
        name: of the peer.
        model: the base; it is run on samples if there are any, and left as it was.
        tasks: at least one, with names that differ.
        settings: of which rank and seed count.
        identity: what a checkpoint must have in common with this merging, besides the settings.
    """

    steps = 1

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tasks: Sequence[Task],
        settings: Settings,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.tasks, self.settings = name, tasks, settings
        self.problem = problem_of(model, tasks, settings)
        self._identity = dict(identity or {})
        self.step, self.seconds = 0, 0.0
        self.updates: Modules = {}
        self.rows: list[dict[str, Value]] = []

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def advance(self) -> float:
        """Merge; return the largest residual, 0 where there are no samples to take it on."""
        began = time.perf_counter()
        self.updates = merge(self.name, self.problem)
        self.rows = [self._row(name) for name in self.updates]
        self.step += 1
        self.seconds += time.perf_counter() - began
        return max(float(row["residual"] or 0) for row in self.rows)

    def result(self) -> Merged:
        """The merged updates, and the report of them."""
        facts = {"method": self.name, "options": asdict(self.problem.options)}
        return Merged(self.updates, Report(f"merged by {self.name}", self.rows, facts=facts))

    def identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this merging to go on with it."""
        text = json.dumps({"method": self.name, **asdict(self.settings)})
        names = "\n".join(f"{task.name} {task.weight!r}" for task in self.tasks)
        tasks = hashlib.sha256(names.encode()).hexdigest()
        return {"settings": text, "tasks": tasks, **self._identity, "torch": version("torch")}

    def state(self) -> dict[str, Tensor]:
        """The result, if it is there."""
        text = bytearray(json.dumps([self.rows, list(self.updates)]).encode())
        tensors = {"rows": torch.frombuffer(text, dtype=torch.uint8)}
        for name, update in self.updates.items():
            tensors[f"a/{name}"], tensors[f"b/{name}"] = update.a, update.b * update.scale
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.rows, names = json.loads(tensors["rows"].numpy().tobytes())
        self.updates = {name: LowRank(tensors[f"a/{name}"], tensors[f"b/{name}"]) for name in names}

    def _row(self, name: str) -> dict[str, Value]:
        weights = self.problem.options.weights_of(self.tasks)
        return {
            "module": name,
            **{f"weight {task.name}": own for task, own in zip(self.tasks, weights, strict=True)},
            "condition": None,
            "rung": None,
            "jitter": None,
            "residual": self._residual(name, weights),
            "rank": self.updates[name].rank,
            "lost": None,
        }

    def _residual(self, name: str, weights: Sequence[float]) -> float | None:
        """What the merged layer is off by on the inputs of the single-task models, by what it would
        be off by without an update; root of weighted squares. None without samples."""
        if self.problem.grams is None:
            return None
        merged, off, without = self.updates[name].delta(), 0.0, 0.0
        for task, weight, own in zip(self.tasks, weights, self.problem.grams(), strict=True):
            update, gram = task.updates.get(name), own[name]
            wanted = torch.zeros_like(merged) if update is None else update.delta()
            off += weight * _energy(merged - wanted, gram)
            without += weight * _energy(wanted, gram)
        return (off / without) ** 0.5 if without > 0 else 0.0


def _energy(update: Tensor, gram: Tensor) -> float:
    """Squared norm of what an update [o, d] gives, per row."""
    return float(((update @ gram) * update).sum())
