"""The work of the command `merge`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pyext.errors import UserError, did_you_mean
from pyext.files import make_output_folder
from pyext.report import Report
from pyext.show import show_rows
from pyext_plugins import checkpoint, session
from pyext_plugins.iteris.adapters import Adapter, save_adapter
from pyext_plugins.iteris.chart import save_residuals
from pyext_plugins.iteris.merging import Merged
from pyext_plugins.iteris.methods import METHODS
from pyext_plugins.iteris.plan import GIB, Plan, make_plan
from pyext_plugins.iteris.processes import told
from pyext_plugins.iteris.samples import make_batches
from pyext_plugins.iteris.settings import Settings
from pyext_plugins.iteris.table import readable
from pyext_plugins.iteris.tasks import Task
from pyext_plugins.progress import interruptible
from pyext_plugins.session import REPORT, exit_interrupted, go_on, one_line_if_unwritable

PICTURE = "residuals.png"


def run(
    method: str,
    base: Path,
    adapters: Sequence[Path],
    samples: Sequence[Path],
    weights: Sequence[float],
    output: Path,
    settings: Settings,
    batch: int,
    max_length: int,
    stream: bool = False,
    process: int = 0,
) -> None:
    """Merge adapters into a new folder; go on where an earlier run left off.

    Args:
        stream: leave the base's weights on disk, and read each module's when it runs.
        process: number of this process among those of the launcher; the first one writes.

    Raises:
        UserError: bad input.
        typer.Exit: with code 130, after Ctrl-C.
    """
    if method not in METHODS:
        hint = did_you_mean(method, METHODS)
        raise UserError(f"--method: expected {', '.join(METHODS)}, got {method!r}.{hint}")
    for option, number in (("--batch", batch), ("--max-length", max_length)):
        if number < 1:
            raise UserError(f"{option}: expected at least 1, got {number}")
    work = output.parent / f".{output.name}.work"
    if output.exists():
        raise UserError(f"--output: {output} exists already; choose another name, or remove it")
    plan = make_plan(base, adapters, samples, weights, output, settings, max_length, stream)
    if not process:
        print(f"needs about {plan.memory / GIB:.2f} GiB of memory, {plan.disk / GIB:.2f} of disk")
    tasks = make_tasks(plan, batch, max_length)
    make_output_folder(work)
    identity = plan.identity() | {"batches": f"{batch} texts of {max_length} tokens"}
    model = plan.base.load(work if stream else None)
    merger = METHODS[method](model, tasks, settings, identity, work)
    with interruptible() as pressed, one_line_if_unwritable(output):

        def stopped() -> bool:
            return told(pressed())

        if process:
            checkpoint.resume(merger, work)
            session.run(merger, should_stop=stopped)
            return
        go_on(merger, merger.steps, work, stopped, label=method, form="residual {:.3f}")
        if not merger.done:
            exit_interrupted(merger.step)
        merged = merger.result()
        write(output, merged, plan.adapters, base)
        shutil.rmtree(work)
    show_rows(readable(merged.report.rows, [task.name for task in tasks]), merged.report.title)
    print(f"{output}: {len(merged.modules)} modules of {len(tasks)} adapters, merged by {method}")


def write(output: Path, merged: Merged, adapters: Sequence[Adapter], base: Path) -> None:
    """Write the folder: adapter, report and picture.

    Raises:
        UserError: it exists already, or cannot be written.
    """

    def beside(folder: Path) -> None:
        save_residuals(folder / PICTURE, merged.report.rows)
        pictures = {"Residual of each module": folder / PICTURE}
        report = Report(
            merged.report.title, merged.report.rows, pictures=pictures, facts=merged.report.facts
        )
        report.save(folder / REPORT)

    named = next((adapter.base for adapter in adapters if adapter.base), str(base))
    config = _common(adapters, ("task_type", "auto_mapping", "revision", "fan_in_fan_out"))
    save_adapter(output, merged.modules, base=named, config=config, beside=beside)


def _common(adapters: Sequence[Adapter], entries: Sequence[str]) -> dict[str, object]:
    """Entries that all adapters' configs have in common."""
    found: dict[str, object] = {}
    for entry in entries:
        values = [adapter.config.get(entry) for adapter in adapters]
        if all(value == values[0] for value in values):
            found[entry] = values[0]
    return found


def make_tasks(plan: Plan, batch: int, max_length: int) -> list[Task]:
    """Updates, batches and weight of each adapter."""
    tokenizer = plan.base.tokenizer() if plan.samples else None
    tasks = []
    for number, (adapter, weight) in enumerate(zip(plan.adapters, plan.weights, strict=True)):
        batches = []
        if plan.samples:
            batches = make_batches(
                plan.samples[number], tokenizer, batch, max_length, plan.base.config
            )
        tasks.append(Task(adapter.name, adapter.modules, batches, weight))
    return tasks
