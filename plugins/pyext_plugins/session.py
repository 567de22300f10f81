"""What long commands share: steps, checkpoints, Ctrl-C, and folders that are not theirs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import typer
from safetensors import SafetensorError

from pyext.errors import UserError
from pyext.files import make_output_folder
from pyext.report import Report
from pyext.show import show_rows
from pyext_plugins import checkpoint
from pyext_plugins.progress import interruptible, progress_bar

CHECKPOINT_SECONDS = 5.0  # between checkpoints: what a kill costs at most
SAVING_SHARE = 0.1  # of the time, at most, for large checkpoints
INTERRUPTED = 130  # the exit code of a program ended by Ctrl-C
REPORT = "report.json"
PSNR = "PSNR {:.2f} dB"


class Steps(Protocol):
    """Work in steps, each of which tells a figure: how well it goes."""

    @property
    def done(self) -> bool:
        """Whether all steps are taken."""

    def advance(self) -> float:
        """Take one."""


class Work(checkpoint.Resumable, Steps, Protocol):
    """Work in steps that can be put down and taken up again."""


def run(
    work: Steps,
    on_step: Callable[[float], None] = lambda figure: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Advance until the work is done or somebody wants it to stop.

    Args:
        work: is changed.
        on_step: called with the figure after every step.
        should_stop: asked before every step.
    """
    while not work.done and not should_stop():
        on_step(work.advance())


def carry_out(
    work: Work,
    steps: int,
    folder: Path,
    names: Sequence[str],
    write_outputs: Callable[[], Report],
    preview: Callable[[], None] = lambda: None,
) -> None:
    """Go on from the folder's checkpoint if there is one, to the end or until Ctrl-C.

    Args:
        work: is changed; its figure is a PSNR in dB.
        steps: of the whole work.
        folder: for checkpoint and results.
        names: of the results besides report.json; without a checkpoint, files of these names are
            the user's.
        write_outputs: writes them, and returns the report.
        preview: called whenever a checkpoint has been written.

    Raises:
        UserError: the folder cannot be written to, or holds what is not of this work.
        typer.Exit: with code 130, after Ctrl-C.
    """
    make_output_folder(folder)
    refuse_files_of_others(folder, names)
    with interruptible() as stopped, one_line_if_unwritable(folder):
        go_on(work, steps, folder, stopped, preview=preview)
        report = write_outputs()
        report.save(folder / REPORT)
    show_rows(report.rows, title=report.title)
    print(f"{folder}: PSNR {report.facts['psnr']:.2f} dB after {work.step} steps")
    if not work.done:
        exit_interrupted(work.step)


def go_on(
    work: Work,
    steps: int,
    folder: Path,
    stopped: Callable[[], bool],
    label: str = "fitting",
    form: str = PSNR,
    preview: Callable[[], None] = lambda: None,
) -> None:
    """Take the work from the folder's checkpoint, if any, to its end or until ``stopped``.

    Args:
        work, steps, folder, preview: as in `carry_out`.
        label: before the progress bar.
        form: how the work's figure is shown beside it.
    """
    if checkpoint.resume(work, folder):
        print(f"resuming at step {work.step} of {steps}", file=sys.stderr)
    with progress_bar(label, steps, work.step, form=form) as show:
        run(work, _saving_now_and_then(work, folder, show, preview), stopped)
    checkpoint.save(work, folder)


def exit_interrupted(step: int) -> None:
    """Say how to go on, and end the program as Ctrl-C does."""
    print(f"interrupted at step {step}; the same command goes on", file=sys.stderr)
    raise typer.Exit(INTERRUPTED)


def _saving_now_and_then(
    work: Work,
    folder: Path,
    show: Callable[[int, float | None], None],
    preview: Callable[[], None],
) -> Callable[[float], None]:
    """What to do after a step: show it, and write a checkpoint every few seconds."""
    next_save = time.monotonic() + CHECKPOINT_SECONDS

    def after_step(figure: float) -> None:
        nonlocal next_save
        show(work.step, figure)
        began = time.monotonic()
        if began >= next_save:
            checkpoint.save(work, folder)
            preview()
            took = time.monotonic() - began
            next_save = time.monotonic() + max(CHECKPOINT_SECONDS, took / SAVING_SHARE)

    return after_step


def refuse_files_of_others(folder: Path, names: Sequence[str]) -> None:
    """Without a checkpoint, files that bear the names of results are the user's.

    Raises:
        UserError: there is one.
    """
    if (folder / checkpoint.NAME).exists():
        return
    taken = [name for name in (*names, REPORT) if (folder / name).exists()]
    if taken:
        raise UserError(
            f"--output: {folder} already holds {taken[0]}, which is not of a fit; choose another "
            "folder"
        )


@contextmanager
def one_line_if_unwritable(path: Path) -> Iterator[None]:
    """A full disk is the user's to mend, not a traceback."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output: cannot write to {path}: {error}") from error
