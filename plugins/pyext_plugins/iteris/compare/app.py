"""The command line of `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyext_plugins.iteris.settings import Settings


def compare(
    base: Annotated[Path, typer.Option(help="Folder of the transformers model.")],
    adapter: Annotated[list[Path], typer.Option(help="Folder of a LoRA of it; one or more.")],
    samples: Annotated[
        list[Path],
        typer.Option(help='JSON Lines of {"text": ...}, a file for each adapter, in their order.'),
    ],
    metric: Annotated[
        str,
        typer.Option(
            metavar="FILE.py:FUNCTION",
            help="Your own: from model and tokenizer to a dict of task name to score.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")],
    method: Annotated[
        list[str] | None, typer.Option(help="One to run; all of them unless told.")
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="How much each adapter counts; 1 unless told.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Of each result, at most; what it takes unless told.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Of IterIS's regulariser.")] = Settings.alpha,
    batch: Annotated[int, typer.Option(help="Texts that the base reads at once.")] = 8,
    max_length: Annotated[int, typer.Option(help="Tokens of a text; the rest is cut off.")] = 256,
    seed: Annotated[int, typer.Option(help="Of what is random.")] = Settings.seed,
) -> None:
    """Merge by every method, score each result by your metric, and print one table.

    Run the same command again to go on after Ctrl-C or a crash: methods that are done stay.
    """
    # What is heavy is imported when the command runs: help must not wait for it.
    from pyext_plugins.iteris.compare.run import run

    settings = Settings(alpha=alpha, rank=rank, seed=seed)
    run(
        base,
        adapter,
        samples,
        weight or [],
        metric,
        method or [],
        output,
        settings,
        batch=batch,
        max_length=max_length,
    )
