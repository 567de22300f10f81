"""The command line of `iteris`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyext_plugins.iteris.compare.app import compare
from pyext_plugins.iteris.settings import Settings

app = typer.Typer(no_args_is_help=True)
app.command()(compare)


@app.callback()
def commands() -> None:
    """Several LoRAs of one base made one."""


@app.command()
def merge(
    base: Annotated[Path, typer.Option(help="Folder of the transformers model.")],
    adapter: Annotated[list[Path], typer.Option(help="Folder of a LoRA of it; one or more.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the merged LoRA.")],
    samples: Annotated[
        list[Path] | None,
        typer.Option(help='JSON Lines of {"text": ...}, a file for each adapter, in their order.'),
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="How much each adapter counts; 1 unless told.")
    ] = None,
    method: Annotated[str, typer.Option(help="How to merge.")] = "iteris",
    rank: Annotated[
        int | None, typer.Option(help="Of the result, at most; the sum of all unless told.")
    ] = None,
    energy: Annotated[
        float, typer.Option(help="Share of each layer's squared output to keep; 0 for all.")
    ] = Settings.energy,
    alpha: Annotated[
        float, typer.Option(help="Of the regulariser, relative to the Grams.")
    ] = Settings.alpha,
    target: Annotated[
        str, typer.Option(help="What layers reproduce: outputs of the delta, or the full ones.")
    ] = Settings.target,
    schedule: Annotated[
        str, typer.Option(help="sweep: layer after layer; iterate: all at once, in rounds.")
    ] = Settings.schedule,
    rounds: Annotated[int, typer.Option(help="Of iterate, at most.")] = Settings.rounds,
    reg: Annotated[
        str, typer.Option(help="What alpha is relative to: fro, trace or diag of the Grams.")
    ] = Settings.reg,
    weighting: Annotated[
        str, typer.Option(help="Tasks in a layer by the energy of full or delta outputs, or one.")
    ] = Settings.weighting,
    products: Annotated[
        str,
        typer.Option(
            help="Type to multiply inputs in: float64; float32, in half the time, which moves the "
            "result by up to 1e-8 / alpha of itself; or auto: float32 from alpha 1e-5 on, if "
            "target is delta and reg is fro."
        ),
    ] = Settings.products,
    batch: Annotated[int, typer.Option(help="Texts that the base reads at once.")] = 8,
    max_length: Annotated[int, typer.Option(help="Tokens of a text; the rest is cut off.")] = 256,
    stream: Annotated[
        bool, typer.Option(help="Leave the base on disk: each module is read when it runs.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of what is random.")] = Settings.seed,
) -> None:
    """Merge LoRAs into one that does all their tasks; write a folder that peft loads.

    Run the same command again to go on after Ctrl-C or a crash: the result is the same.
    """
    # What is heavy is imported when the command runs: help must not wait for it.
    from pyext_plugins.iteris.command import run
    from pyext_plugins.iteris.processes import joined

    settings = Settings(
        alpha=alpha,
        target=target,  # type: ignore[arg-type]
        schedule=schedule,  # type: ignore[arg-type]
        rounds=rounds,
        reg=reg,  # type: ignore[arg-type]
        weighting=weighting,  # type: ignore[arg-type]
        rank=rank,
        energy=energy,
        products=products,  # type: ignore[arg-type]
        seed=seed,
    )
    with joined() as process:
        run(
            method,
            base,
            adapter,
            samples or [],
            weight or [],
            output,
            settings,
            batch=batch,
            max_length=max_length,
            stream=stream,
            process=process,
        )
