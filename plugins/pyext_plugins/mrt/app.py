"""The command line of `mrt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyext.errors import UserError
from pyext_plugins.mrt.config import MrtConfig
from pyext_plugins.mrt.training import Settings
from pyext_plugins.options import Output, Seed

app = typer.Typer(no_args_is_help=True)


@app.callback()
def commands() -> None:
    """Tune an image-and-text model by edits of its hidden states."""


def numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Numbers of blocks from "1,3,5-9" or "none"; None for None.

    Raises:
        UserError: the text is something else.
    """
    if text is None or text == "none":
        return None if text is None else ()
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(f"{option}: expected numbers as 1,3,5-9, or none, got {text!r}")
        found += range(int(first), int(last if dash else first) + 1)
    return tuple(found)


@app.command()
def train(
    model: Annotated[Path, typer.Option(help="Folder of a LLaVA model of transformers.")],
    data: Annotated[
        Path, typer.Option(help="CSV or JSON Lines file with image, question and answer.")
    ],
    output: Output,
    epochs: Annotated[int, typer.Option(help="Over all samples.")] = Settings.epochs,
    batch: Annotated[int, typer.Option(help="Samples in a step.")] = Settings.batch,
    step_size: Annotated[float, typer.Option(help="Adam's.")] = Settings.step_size,
    vision_rank: Annotated[
        int, typer.Option(help="Of editors of vision blocks and the projector.")
    ] = MrtConfig.vision_rank,
    text_rank: Annotated[
        int, typer.Option(help="Of editors of the language model.")
    ] = MrtConfig.text_rank,
    length: Annotated[
        int, typer.Option(help="First and last tokens of a question to edit.")
    ] = MrtConfig.prefix,
    vision_layers: Annotated[
        str | None, typer.Option(help="Vision blocks, as 1-22 or 0,2,4 or none; else all used.")
    ] = None,
    text_layers: Annotated[
        str | None, typer.Option(help="Blocks of the language model, as 1,3,5 or none; else all.")
    ] = None,
    dropout: Annotated[
        float, typer.Option(help="Share of the edits to drop in training.")
    ] = MrtConfig.dropout,
    template: Annotated[
        str, typer.Option(help="Of a prompt, with {image} and {question} in it.")
    ] = Settings.template,
    max_length: Annotated[
        int, typer.Option(help="Tokens of a sample, those of the picture included.")
    ] = Settings.max_length,
    holdout: Annotated[
        float, typer.Option(help="Share of the samples to test on.")
    ] = Settings.holdout,
    seed: Seed = Settings.seed,
) -> None:
    """Train editors on questions about pictures; write them and report.json.

    Run the same command again to go on after Ctrl-C or a crash: the result is the same.
    """
    # What is heavy is imported when the command runs: help must not wait for it.
    from pyext_plugins.mrt.train import run

    vision = numbers("--vision-layers", vision_layers)
    text = numbers("--text-layers", text_layers)
    settings = Settings(epochs, batch, step_size, max_length, holdout, template, seed)
    try:
        config = MrtConfig(
            dropout=dropout,
            vision_rank=vision_rank,
            text_rank=text_rank,
            prefix=length,
            suffix=length,
            vision_layers=vision,
            text_layers=text,
        )
    except ValueError as error:
        option = str(error).replace("prefix:", "length:", 1).replace("_", "-", 1)
        raise UserError(f"--{option}") from error
    run(model, data, output, config, settings)
