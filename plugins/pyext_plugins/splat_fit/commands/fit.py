"""`pyext splat-fit fit`: one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyext_plugins.options import Output
from pyext_plugins.picture import load_picture
from pyext_plugins.session import carry_out
from pyext_plugins.splat_fit.fitting import Fit, Settings
from pyext_plugins.splat_fit.outputs import OUTPUT_NAMES, write_outputs


def fit(
    image: Annotated[Path, typer.Argument(help="Any picture file.")],
    output: Output,
    gaussians: Annotated[int, typer.Option(help="How many.")] = Settings.gaussians,
    steps: Annotated[int, typer.Option(help="Of the optimizer.")] = Settings.steps,
    seed: Annotated[int, typer.Option(help="Of the starting places.")] = Settings.seed,
) -> None:
    """Fit IMAGE and write target.png, fit.png, strip.png, splats.ply and report.json.

    Run the same command again to go on after Ctrl-C or a crash: the result is the same.
    """
    settings = Settings(gaussians=gaussians, steps=steps, seed=seed)
    state = Fit(load_picture(image), settings)
    carry_out(state, steps, output, OUTPUT_NAMES, lambda: write_outputs(state, output))
