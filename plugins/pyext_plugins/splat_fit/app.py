"""The command line of `splat-fit`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from safetensors import SafetensorError

from pyext.errors import UserError
from pyext.files import make_output_folder
from pyext.show import show_rows
from pyext_plugins.splat_fit import checkpoint
from pyext_plugins.splat_fit.fitting import Fit, Settings, run
from pyext_plugins.splat_fit.outputs import OUTPUT_NAMES, write_outputs
from pyext_plugins.splat_fit.picture import load_picture
from pyext_plugins.splat_fit.progress import interruptible, progress_bar

CHECKPOINT_SECONDS = 5.0  # between checkpoints: what a kill costs at most
INTERRUPTED = 130  # the exit code of a program ended by Ctrl-C

app = typer.Typer(no_args_is_help=True)


@app.callback()
def commands() -> None:
    """Fit a picture with Gaussians; write a scene that splat viewers open."""


@app.command()
def fit(
    image: Annotated[Path, typer.Argument(help="Any picture file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")],
    gaussians: Annotated[int, typer.Option(help="How many.")] = Settings.gaussians,
    steps: Annotated[int, typer.Option(help="Of the optimizer.")] = Settings.steps,
    seed: Annotated[int, typer.Option(help="Of the starting places.")] = Settings.seed,
) -> None:
    """Fit IMAGE and write target.png, fit.png, strip.png, splats.ply and report.json.

    Run the same command again to go on after Ctrl-C or a crash: the result is the same.
    """
    settings = Settings(gaussians=gaussians, steps=steps, seed=seed)
    state = Fit(load_picture(image), settings)
    make_output_folder(output)
    refuse_files_of_others(output)
    with interruptible() as stopped, one_line_if_unwritable(output):
        if checkpoint.resume(state, output):
            print(f"resuming at step {state.step} of {steps}", file=sys.stderr)
        with progress_bar(state) as show:
            run(state, saving_now_and_then(state, output, show), stopped)
        checkpoint.save(state, output)
        report = write_outputs(state, output)
        report.save(output / "report.json")
    show_rows(report.rows, title=report.title)
    print(f"{output}: PSNR {report.facts['psnr']:.2f} dB after {state.step} steps")
    if not state.done:
        print(f"interrupted at step {state.step}; the same command goes on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


def saving_now_and_then(
    state: Fit, folder: Path, show: Callable[[float], None]
) -> Callable[[float], None]:
    """What to do after a step: show it, and write a checkpoint every few seconds."""
    saved = time.monotonic()

    def after_step(psnr: float) -> None:
        nonlocal saved
        show(psnr)
        if time.monotonic() - saved >= CHECKPOINT_SECONDS:
            checkpoint.save(state, folder)
            saved = time.monotonic()

    return after_step


def refuse_files_of_others(folder: Path) -> None:
    """Without a checkpoint of a fit, files that bear the names of its results are the user's."""
    if (folder / checkpoint.NAME).exists():
        return
    taken = [name for name in (*OUTPUT_NAMES, "report.json") if (folder / name).exists()]
    if taken:
        raise UserError(
            f"--output: {folder} already holds {taken[0]}, which is not of a fit; choose another "
            "folder"
        )


@contextmanager
def one_line_if_unwritable(folder: Path) -> Iterator[None]:
    """A full disk is the user's to mend, not a traceback."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output: cannot write to {folder}: {error}") from error
