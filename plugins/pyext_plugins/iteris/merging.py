"""Merging by IterIS, in steps that can be put down and taken up again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from pyext.errors import UserError
from pyext.report import Report, Value
from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.branch import Brancher
from pyext_plugins.iteris.groups import Group, find_groups
from pyext_plugins.iteris.linear import base_weight
from pyext_plugins.iteris.processes import shared
from pyext_plugins.iteris.settings import Settings
from pyext_plugins.iteris.states import States
from pyext_plugins.iteris.statistics import Statistics, collect, products_of
from pyext_plugins.iteris.system import Solution, System
from pyext_plugins.iteris.tasks import Task, targeted
from pyext_plugins.iteris.weights import task_weight


@dataclass(frozen=True)
class Merged:
    """What comes out of merging.

    Args:
        modules: the merged update, by the module's name in the base.
        report: a row for each module, and the settings.
    """

    modules: dict[str, LowRank] = field(repr=False)
    report: Report = field(repr=False)


class Merging:
    """Merging by IterIS (Chen et al. 2025, arXiv 2411.15231).

    A step solves one group of modules that read the same input ("sweep"), or all of them
    ("iterate").

    Args:
        model: the base; it is run, and left as it was.
        tasks: at least one, with names that differ.
        settings: how to merge.
        identity: what a checkpoint must have in common with this merging, besides the settings.
        folder: for what a sweep keeps of the samples on its way; None for a temporary one.

    Raises:
        UserError: a module is not run on the samples; or, in a sweep, more than once.
    """

    method = "iteris"

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Task],
        settings: Settings,
        identity: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.model, self.tasks, self.settings = model, tasks, settings
        self._identity = dict(identity or {})
        names = targeted(tasks)
        self.brancher = Brancher(model, names)
        with self.brancher.hooked():
            batch = tasks[0].batches[0].to(self.brancher.device)
            self.groups = find_groups(model, names, batch)
        shared = [group for group in self.groups if group.calls > 1]
        if shared and settings.schedule == "sweep":
            raise UserError(
                f"--schedule: {shared[0].first} is run {shared[0].calls} times in one pass, so no "
                "sweep can solve it in its turn; use iterate"
            )
        self._states = self._make_states(folder) if settings.schedule == "sweep" else None
        self.step, self.seconds, self.rounds_needed = 0, 0.0, settings.rounds
        self.updates: dict[str, LowRank] = {}
        self.rows: list[dict[str, Value]] = []
        self._weights: dict[str, dict[str, float]] = {}

    @property
    def steps(self) -> int:
        return len(self.groups) if self.settings.schedule == "sweep" else self.rounds_needed

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def advance(self) -> float:
        """Take one step; return the largest residual in it."""
        began = time.perf_counter()
        with self.brancher.hooked():
            if self.settings.schedule == "sweep":
                group = self.groups[self.step]
                merged = self.updates if self.step else None
                solutions = self._solve([group], merged)
                self.updates.update({name: own.update for name, own in solutions.items()})
            else:
                solutions = self._solve(self.groups, self.updates if self.step else None)
                updates = {name: own.update for name, own in solutions.items()}
                if _same(updates, self.updates):
                    self.rounds_needed = self.step + 1
                self.updates, self.rows = updates, []
            self.rows += [self._row(name, own) for name, own in solutions.items()]
        self.step += 1
        self.seconds += time.perf_counter() - began
        return max(own.residual for own in solutions.values())

    def result(self) -> Merged:
        """The merged updates so far, and the report of them."""
        places = {row["module"]: row for row in self.rows}
        names = [name for group in self.groups for name in group.modules if name in self.updates]
        rows = [places[name] for name in names]
        modules = {name: self.updates[name] for name in sorted(names)}
        return Merged(modules, Report(f"merged by {self.method}", rows, facts=self._facts()))

    def identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this merging to go on with it."""
        digest = hashlib.sha256()
        for task in self.tasks:
            digest.update(f"{task.name} {task.weight!r}".encode())
            for name, update in sorted(task.updates.items()):
                digest.update(f"{name} {update.scale!r}".encode())
                for factor in (update.a, update.b):
                    digest.update(factor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return {
            "settings": json.dumps({"method": self.method, **asdict(self.settings)}),
            "adapters": digest.hexdigest(),
            **self._identity,
            "torch": version("torch"),
        }

    def state(self) -> dict[str, Tensor]:
        """All that the rest of the merging depends on, besides step and seconds."""
        text = bytearray(json.dumps([self.rows, self.rounds_needed]).encode())
        tensors = {"rows": torch.frombuffer(text, dtype=torch.uint8)}
        for name, update in self.updates.items():
            tensors[f"a/{name}"], tensors[f"b/{name}"] = update.a, update.b
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        text = tensors["rows"].numpy().tobytes()
        self.rows, self.rounds_needed = json.loads(text)
        names = [name.removeprefix("a/") for name in tensors if name.startswith("a/")]
        device = self.brancher.device
        self.updates = {
            name: LowRank(tensors[f"a/{name}"].to(device), tensors[f"b/{name}"].to(device))
            for name in names
        }

    def _solve(
        self, groups: Sequence[Group], merged: Mapping[str, LowRank] | None
    ) -> dict[str, Solution]:
        """Solve groups, all on the inputs that one set of merged updates gives them."""
        modules = self.brancher.modules
        dtype = torch.promote_types(next(self.model.parameters()).dtype, torch.float32)
        systems = {
            name: System(name, base_weight(modules[name]), self.settings, dtype)
            for group in groups
            for name in group.modules
        }
        self._weights = {name: {} for name in systems}
        found = shared(self.tasks, lambda task: self._collect(task, merged, groups))
        for task, own in zip(self.tasks, found, strict=True):
            for group, statistics in own.items():
                self._add(systems, task, group, statistics)
        names = list(systems)
        solutions = shared(names, lambda name: systems[name].solve())
        return dict(zip(names, solutions, strict=True))

    def _collect(
        self, task: Task, merged: Mapping[str, LowRank] | None, groups: Sequence[Group]
    ) -> dict[Group, Statistics]:
        found = collect(self.brancher, task, merged, groups, self.settings, self._states)
        if self._states and self.step + 1 == self.steps:
            # Before the others learn of the result: then the first process may remove the folder.
            self._states.drop(task.name)
        return found

    def _make_states(self, folder: Path | None) -> States | None:
        """Those of a sweep, if the model's structure is such that passes can go on from them."""
        states, task = States(folder), self.tasks[0]
        batch = task.batches[0].to(self.brancher.device)
        trial, _ = states.of(task.name, 0)
        with self.brancher.hooked():
            can = self.brancher.can_go_on(batch, task.updates, self.groups, trial)
        states.drop(task.name)
        return states if can else None

    def _add(
        self, systems: Mapping[str, System], task: Task, group: Group, statistics: Statistics
    ) -> None:
        for name in group.modules:
            module = self.brancher.modules[name]
            weight = task_weight(module, name, task, statistics, self.settings)
            self._weights[name][task.name] = weight
            systems[name].add(statistics, task.updates.get(name), weight)

    def _row(self, name: str, solution: Solution) -> dict[str, Value]:
        weights = {f"weight {task}": weight for task, weight in self._weights[name].items()}
        return {
            "module": name,
            **weights,
            "condition": solution.condition,
            "rung": solution.rung,
            "jitter": solution.jitter,
            "residual": solution.residual,
            "rank": solution.update.rank,
            "lost": solution.lost,
        }

    def _facts(self) -> dict[str, object]:
        products = products_of(self.settings, next(self.model.parameters()).dtype)
        lacking = {
            task.name: [name for name in targeted(self.tasks) if name not in task.updates]
            for task in self.tasks
        }
        return {
            "method": self.method,
            "settings": asdict(self.settings),
            "tasks": {task.name: task.weight for task in self.tasks},
            "without an update": {task: names for task, names in lacking.items() if names},
            "inputs shared": [list(group.modules) for group in self.groups],
            "rounds": self.step if self.settings.schedule == "iterate" else 1,
            "products": str(products).removeprefix("torch."),
            "sums": "float64",
        }


def _same(one: Mapping[str, LowRank], other: Mapping[str, LowRank]) -> bool:
    """Whether two sets of updates are the same to the bit."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name].a, other[name].a) and torch.equal(one[name].b, other[name].b)
        for name in one
    )


def merge(
    model: nn.Module,
    tasks: Sequence[Task],
    settings: Settings | None = None,
    folder: Path | None = None,
) -> Merged:
    """Merge adapters of one base by IterIS.

    Args:
        model: the base; it is run, and left as it was.
        tasks: at least one, with names that differ: each the updates of an adapter and batches of
            its samples.
        settings: how to merge.
        folder: for what a sweep keeps of the samples on its way, and removes; None for a temporary
            one.

    Raises:
        UserError: bad input, which is then named.
    """
    merging = Merging(model, tasks, settings or Settings(), folder=folder)
    while not merging.done:
        merging.advance()
    return merging.result()
