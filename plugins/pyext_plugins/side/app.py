"""The command lines of `unipt`, `sherl` and `lst`: one command, three methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyext_plugins.options import Output, Seed
from pyext_plugins.side.config import CONFIGS
from pyext_plugins.side.training import Settings


def make_app(method: str) -> typer.Typer:
    """The commands of one method."""
    app = typer.Typer(no_args_is_help=True)
    config = CONFIGS[method]

    @app.callback()
    def commands() -> None:
        """Fine-tune beside a frozen encoder."""

    @app.command()
    def train(
        model: Annotated[Path, typer.Option(help="Folder of a transformers encoder.")],
        data: Annotated[Path, typer.Option(help="CSV file with a line of column names.")],
        text_column: Annotated[str, typer.Option(help="The column to read.")],
        label_column: Annotated[str, typer.Option(help="The column to predict.")],
        output: Output,
        epochs: Annotated[int, typer.Option(help="Over all texts.")] = Settings.epochs,
        batch: Annotated[int, typer.Option(help="Texts in a step.")] = Settings.batch,
        step_size: Annotated[
            float | None, typer.Option(help="AdamW's, of the side network.")
        ] = None,
        reduction: Annotated[
            int, typer.Option(help="How many times narrower than the encoder.")
        ] = config.reduction,
        max_length: Annotated[
            int, typer.Option(help="Tokens of a text; the rest is cut off.")
        ] = Settings.max_length,
        holdout: Annotated[
            float, typer.Option(help="Share of the rows to test on.")
        ] = Settings.holdout,
        seed: Seed = Settings.seed,
        compare: Annotated[
            bool, typer.Option(help="Also train a linear probe, LoRA, and the whole encoder.")
        ] = False,
        cache: Annotated[
            Path | None, typer.Option(help="Folder for hidden states, computed once.")
        ] = None,
    ) -> None:
        """Train on the texts of a CSV file; write the adapter and report.json.

        Run the same command again to go on after Ctrl-C or a crash: the result is the same.
        """
        # What is heavy is imported when the command runs: help must not wait for it.
        from pyext_plugins.side.train import run

        settings = Settings(epochs, batch, step_size, max_length, holdout, seed)
        run(
            method,
            model,
            data,
            (text_column, label_column),
            output,
            settings,
            reduction,
            compare=compare,
            cache=cache,
        )

    return app


unipt, sherl, lst = map(make_app, ("unipt", "sherl", "lst"))
