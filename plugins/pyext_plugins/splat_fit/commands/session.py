"""What the long commands share: checkpoints, Ctrl-C, and folders that are not theirs."""

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
from pyext_plugins.progress import interruptible, progress_bar
from pyext_plugins.splat_fit import checkpoint
from pyext_plugins.splat_fit.fitting import Steps, run

CHECKPOINT_SECONDS = 5.0  # between checkpoints: what a kill costs at most
INTERRUPTED = 130  # the exit code of a program ended by Ctrl-C
REPORT = "report.json"


class Work(checkpoint.Resumable, Steps, Protocol):
    """Work in steps that can be put down and taken up again."""


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
        work: is changed.
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
    _refuse_files_of_others(folder, names)
    with interruptible() as stopped, one_line_if_unwritable(folder):
        if checkpoint.resume(work, folder):
            print(f"resuming at step {work.step} of {steps}", file=sys.stderr)
        with progress_bar("fitting", steps, work.step) as show:
            run(work, _saving_now_and_then(work, folder, show, preview), stopped)
        checkpoint.save(work, folder)
        report = write_outputs()
        report.save(folder / REPORT)
    show_rows(report.rows, title=report.title)
    print(f"{folder}: PSNR {report.facts['psnr']:.2f} dB after {work.step} steps")
    if not work.done:
        print(f"interrupted at step {work.step}; the same command goes on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


def _saving_now_and_then(
    work: Work,
    folder: Path,
    show: Callable[[int, float | None], None],
    preview: Callable[[], None],
) -> Callable[[float], None]:
    """What to do after a step: show it, and write a checkpoint every few seconds."""
    saved = time.monotonic()

    def after_step(psnr: float) -> None:
        nonlocal saved
        show(work.step, psnr)
        if time.monotonic() - saved >= CHECKPOINT_SECONDS:
            checkpoint.save(work, folder)
            preview()
            saved = time.monotonic()

    return after_step


def _refuse_files_of_others(folder: Path, names: Sequence[str]) -> None:
    """Without a checkpoint of a fit, files that bear the names of its results are the user's."""
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
