"""The command line of `pathweave`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, cast

import typer

from pyext_plugins.options import Output, Seed
from pyext_plugins.pathweave.paths import Gate
from pyext_plugins.pathweave.training import Settings

app = typer.Typer(no_args_is_help=True)


class Choice(str, Enum):
    """Of the gate."""

    noisy = "noisy"
    soft = "soft"
    none = "none"


Model = Annotated[Path, typer.Option(help="Folder of a Q-Former, BLIP-2 or InstructBLIP.")]
File = Annotated[
    Path, typer.Option(help="Safetensors: features [n, tokens, width] and labels [n].")
]


@app.callback()
def commands() -> None:
    """Learn modality after modality, each on a path of its own."""


@app.command()
def train(
    model: Model,
    modality: Annotated[str, typer.Option(help="Name of the new one.")],
    features: File,
    output: Output,
    previous: Annotated[
        Path | None, typer.Option("--from", help="Results of the modality before this one.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Over all rows.")] = Settings.epochs,
    batch: Annotated[int, typer.Option(help="Rows in a step.")] = Settings.batch,
    step_size: Annotated[float, typer.Option(help="AdamW's largest.")] = Settings.step_size,
    rank: Annotated[int, typer.Option(help="Of the adapters.")] = Settings.rank,
    gate: Annotated[
        Choice, typer.Option(help="Between the adapters on the path; none: their sum.")
    ] = Choice.noisy,
    alone: Annotated[
        bool, typer.Option(help="Do not reuse adapters of earlier modalities.")
    ] = False,
    queries: Annotated[
        int | None, typer.Option(help="By default as many as the model has, or 32.")
    ] = None,
    holdout: Annotated[float, typer.Option(help="Share of the rows to test on.")] = (
        Settings.holdout
    ),
    seed: Seed = Settings.seed,
) -> None:
    """Train a modality on features of its encoder; write all paths so far, and report.json.

    Run the same command again to go on after Ctrl-C or a crash: the result is the same.
    """
    # What is heavy is imported when the command runs: help must not wait for it.
    from pyext_plugins.pathweave.train import run

    kind = cast(Gate, gate.value)
    settings = Settings(epochs, batch, step_size, rank, kind, not alone, queries, holdout, seed)
    run(model, modality, features, previous, output, settings)


@app.command()
def test(
    model: Model,
    paths: Annotated[Path, typer.Option(help="Results of `train`.")],
    modality: Annotated[str, typer.Option(help="Whose path to take.")],
    features: File,
) -> None:
    """Score a modality's path: after later ones were learned, it is what it was."""
    from pyext_plugins.pathweave.train import test as run

    run(model, paths, modality, features)
