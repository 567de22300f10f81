"""The command line of `vcedit`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pyext.errors import UserError
from pyext.files import make_output_folder
from pyext.methods import resolve
from pyext.scene import load
from pyext.show import show_rows
from pyext_plugins.options import Output
from pyext_plugins.progress import interruptible
from pyext_plugins.vcedit.cameras import load_cameras
from pyext_plugins.vcedit.editing import Edit, Editor, Settings
from pyext_plugins.vcedit.fitting import render
from pyext_plugins.vcedit.outputs import SCENE, refuse_files_of_others, write_outputs

INTERRUPTED = 130  # the exit code of a program ended by Ctrl-C

app = typer.Typer(no_args_is_help=True)


@app.callback()
def commands() -> None:
    """Make a 2D editor treat all views of a Gaussian scene alike."""


@app.command()
def edit(
    scene: Annotated[Path, typer.Argument(help="Gaussians: a .ply or .splat file.")],
    cameras: Annotated[
        Path, typer.Option(help="JSON list of {viewmat 4x4, K 3x3, width, height}.")
    ],
    editor: Annotated[
        str, typer.Option(help="module:function of (images [V, H, W, 3], consistency) -> images.")
    ],
    output: Output,
    rounds: Annotated[int, typer.Option(help="Of editing and fitting.")] = Settings.rounds,
    steps: Annotated[int, typer.Option(help="Of the fit in each round.")] = Settings.steps,
    seed: Annotated[int, typer.Option(help="Of the order of views.")] = Settings.seed,
) -> None:
    """Edit SCENE and write edited.ply, renders/, guidance/, overview.png and report.json.

    The editor's module is looked for in the current folder too. After Ctrl-C the scene as far as
    it came is written.
    """
    settings = Settings(rounds=rounds, steps=steps, seed=seed)
    views = load_cameras(cameras)
    state = Edit(load(scene), views, load_editor(editor), settings)
    make_output_folder(output)
    refuse_files_of_others(output)
    with torch.no_grad():
        before = render(state.scene, views).clamp(0, 1)
    with interruptible() as stopped:
        with progress_bar(state) as show, suppress(KeyboardInterrupt):
            state.run(show, stopped)
        try:
            report = write_outputs(state, before, output)
        except OSError as error:
            raise UserError(f"--output: cannot write to {output}: {error}") from error
    show_rows(report.rows, title=report.title)
    print(f"{output / SCENE}: after {state.round} of {rounds} rounds")
    if not state.done:
        print("interrupted; the results are those of the last step", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


def load_editor(reference: str) -> Editor:
    """The function that ``module:function`` names; modules of the current folder are found."""
    module, _, function = reference.partition(":")
    if not (module and function):
        raise UserError(f"--editor: expected module:function, got {reference!r}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = resolve(reference)
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise UserError(f"--editor: {reference} is a {type(found).__name__}, not a function")
    return cast(Editor, found)


@contextmanager
def progress_bar(state: Edit) -> Iterator[Callable[[float | None], None]]:
    """A bar on stderr over the steps of all rounds; gives what to call after each."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    rounds, steps = state.settings.rounds, state.settings.steps
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=rounds * steps)

        def show(loss: float | None) -> None:
            stage = "editing" if loss is None else f"fitting, loss {loss:.3f}"
            step = 0 if state.fit is None else state.fit.step
            bar.update(
                task,
                completed=state.round * steps + step,
                description=f"round {state.round + 1} of {rounds}: {stage}",
            )

        yield show
