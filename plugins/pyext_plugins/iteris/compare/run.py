"""The work of the command `compare`."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from pyext import environment
from pyext.errors import UserError, did_you_mean
from pyext.files import make_output_folder
from pyext.report import Report, Value
from pyext.show import show_rows
from pyext_plugins.bars import save_bars
from pyext_plugins.iteris.adapters import LowRank, save_adapter
from pyext_plugins.iteris.command import make_tasks
from pyext_plugins.iteris.compare.metric import Metric
from pyext_plugins.iteris.compare.records import Record, Records
from pyext_plugins.iteris.merging import merge as merge_by_iteris
from pyext_plugins.iteris.peers import PEERS
from pyext_plugins.iteris.peers import merge as merge_by_peer
from pyext_plugins.iteris.peers.merger import problem_of
from pyext_plugins.iteris.plan import Plan, make_plan
from pyext_plugins.iteris.settings import Settings
from pyext_plugins.progress import interruptible, progress_bar
from pyext_plugins.session import REPORT, exit_interrupted, one_line_if_unwritable

PICTURE = "scores.png"
BASE, ALONE = "base", "{} alone"
ITERIS = {"iteris": "delta", "iteris-full": "full"}  # and their targets
METHODS = (*ITERIS, *PEERS)

Modules = Mapping[str, LowRank]


def run(
    base: Path,
    adapters: Sequence[Path],
    samples: Sequence[Path],
    weights: Sequence[float],
    metric: str,
    methods: Sequence[str],
    output: Path,
    settings: Settings,
    batch: int,
    max_length: int,
) -> None:
    """Merge by every method, score each result, and print one table.

    Args:
        methods: some of `METHODS`; none for all.

    Raises:
        UserError: bad input.
        typer.Exit: with code 130, after Ctrl-C.
    """
    chosen = _checked(methods)
    own = Metric(metric)
    if not samples:
        raise UserError("--samples: expected a file for each adapter, got none")
    plan = make_plan(base, adapters, samples, weights, output, settings, max_length)
    make_output_folder(output)
    with interruptible() as stopped, one_line_if_unwritable(output):
        records = Records(output, _inputs(plan, own, settings, batch, max_length))
        comparison = Comparison(plan, own, settings, records, (batch, max_length))
        arms = comparison.arms(chosen)
        if not comparison.carry_out(arms, stopped):
            exit_interrupted(sum(records.find(arm) is not None for arm in arms))
        report = comparison.report(arms, output)
        report.save(output / REPORT)
    show_rows(report.rows, title=report.title)
    for arm, reason in report.facts["not run"].items():
        print(f"not run: {arm}: {reason}")
    print(f"{output}: an adapter of each method in adapters/, scores in {REPORT} and {PICTURE}")


class Comparison:
    """One base, adapters, samples and a metric, and what was found so far.

    Args:
        plan: checked inputs.
        metric: of a model.
        settings: of which all count for IterIS, rank and seed for the others.
        records: of what is done.
        reading: texts in a batch, and tokens of a text.
    """

    def __init__(
        self,
        plan: Plan,
        metric: Metric,
        settings: Settings,
        records: Records,
        reading: tuple[int, int],
    ) -> None:
        self.plan, self.metric, self.settings, self.records = plan, metric, settings, records
        self.model, self.tokenizer = plan.base.load(), plan.base.tokenizer()
        self.tasks = make_tasks(plan, *reading)
        self.problem = problem_of(self.model, self.tasks, settings, self._score)

    def arms(self, methods: Sequence[str]) -> list[str]:
        """All that is scored: the base, each adapter alone, and the methods."""
        alone = [ALONE.format(adapter.name) for adapter in self.plan.adapters]
        return [BASE, *alone, *methods]

    def carry_out(self, arms: Sequence[str], stopped: Callable[[], bool]) -> bool:
        """Do what is not done yet; False if it was stopped."""
        with progress_bar("methods", len(arms)) as show:
            for number, arm in enumerate(arms):
                if stopped():
                    return False
                if self.records.find(arm) is None:
                    self.records.keep(arm, self._run(arm))
                show(number + 1, None)
        return True

    def report(self, arms: Sequence[str], output: Path) -> Report:
        """On all arms, best first below base and adapters alone. Writes the picture."""
        found = {arm: record for arm in arms if (record := self.records.find(arm)) is not None}
        scored = {arm: record for arm, record in found.items() if record.skipped is None}
        save_bars(
            output / PICTURE,
            {arm: list(record.scores.values()) for arm, record in scored.items()},
            "score",
        )
        first = [arm for arm in scored if arm not in METHODS]
        others = sorted(set(scored) - set(first), key=lambda arm: -_mean(scored[arm]))
        return Report(
            title=f"{len(self.tasks)} LoRAs of {self.plan.base.folder.name}, merged and scored",
            rows=[_row(arm, scored[arm]) for arm in (*first, *others)],
            pictures={"scores by method": output / PICTURE},
            facts={
                "metric": self.metric.reference,
                "settings": asdict(self.settings),
                "options of the other methods": asdict(self.problem.options),
                "not run": {arm: record.skipped for arm, record in found.items() if record.skipped},
                "environment": environment.describe(),
            },
        )

    def _run(self, arm: str) -> Record:
        if arm == BASE:
            return Record(self._scores({}))
        for adapter in self.plan.adapters:
            if arm == ALONE.format(adapter.name):
                return Record(self._scores(adapter.modules))
        began = time.perf_counter()
        try:
            modules = self._merged(arm)
        except UserError as error:
            # peft refuses ranks that differ, for one: no reason not to see the other methods.
            if arm.startswith("peft-"):
                return Record({}, skipped=str(error))
            raise
        seconds = time.perf_counter() - began
        scores = self._scores(modules)
        save_adapter(self.records.adapter(arm), modules, base=self._base_name())
        return Record(scores, max(update.rank for update in modules.values()), seconds)

    def _merged(self, method: str) -> Modules:
        if method in ITERIS:
            settings = replace(self.settings, target=ITERIS[method])  # type: ignore[arg-type]
            folder = self.records.folder
            return merge_by_iteris(self.model, self.tasks, settings, folder).modules
        return merge_by_peer(method, self.problem)

    def _scores(self, modules: Modules) -> dict[str, float]:
        return self.metric(self.model, self.tokenizer, modules)

    def _score(self, modules: Modules) -> float:
        return mean(self._scores(modules).values())

    def _base_name(self) -> str:
        named = [adapter.base for adapter in self.plan.adapters if adapter.base]
        return named[0] if named else str(self.plan.base.folder)


def _checked(methods: Sequence[str]) -> list[str]:
    for method in methods:
        if method not in METHODS:
            hint = did_you_mean(method, METHODS)
            raise UserError(f"--method: expected {', '.join(METHODS)}, got {method!r}.{hint}")
    return list(dict.fromkeys(methods)) or list(METHODS)


def _inputs(
    plan: Plan, metric: Metric, settings: Settings, batch: int, max_length: int
) -> dict[str, str]:
    return {
        **plan.identity(),
        "metric": hashlib.sha256(metric.path.read_bytes()).hexdigest() + metric.reference,
        "settings": json.dumps(asdict(settings)),
        "batches": f"{batch} texts of {max_length} tokens",
        "pyext-plugins": version("pyext-plugins"),
    }


def _mean(record: Record) -> float:
    return mean(record.scores.values())


def _row(arm: str, record: Record) -> dict[str, Value]:
    row: dict[str, Any] = {"method": arm, "mean": _mean(record), **record.scores}
    return {**row, "rank": record.rank, "merged in (s)": _rounded(record.seconds)}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)
