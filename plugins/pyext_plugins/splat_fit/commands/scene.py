"""`pyext splat-fit scene`: Gaussians from photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyext_plugins.options import Output, Seed
from pyext_plugins.session import carry_out
from pyext_plugins.splat_fit import densify
from pyext_plugins.splat_fit.dataset import BACKGROUNDS, Options, load_dataset
from pyext_plugins.splat_fit.training import Training, TrainingSettings
from pyext_plugins.splat_fit.training_outputs import OUTPUT_NAMES, write_outputs, write_views

Default = TrainingSettings


def scene(
    data: Annotated[
        Path,
        typer.Argument(
            help="A folder with transforms.json or a COLMAP reconstruction, or a .npz of images, "
            "poses and focal."
        ),
    ],
    output: Output,
    steps: Annotated[int, typer.Option(help="Of the optimizer.")] = Default.steps,
    gaussians: Annotated[
        int, typer.Option(help="To start with where no points are known; with mcmc, at most.")
    ] = Default.gaussians,
    sh_degree: Annotated[
        int, typer.Option(help="Of the colour's spherical harmonics, 0 to 4.")
    ] = Default.sh_degree,
    strategy: Annotated[
        str, typer.Option(help=f"How Gaussians are added: {' or '.join(densify.NAMES)}.")
    ] = Default.strategy,
    test_every: Annotated[
        int, typer.Option(help="Hold out every so many photographs; 0 for none.")
    ] = Options.test_every,
    resolution: Annotated[
        int, typer.Option(help="Pixels of the longer side; larger photographs are scaled down.")
    ] = Options.resolution,
    background: Annotated[
        str, typer.Option(help=f"Behind transparent pixels: {' or '.join(BACKGROUNDS)}.")
    ] = Options.background,
    seed: Seed = Default.seed,
) -> None:
    """Train Gaussians on the photographs of DATA; write scene.ply, views.png and report.json.

    Run the same command again to go on after Ctrl-C or a crash: the result is the same.
    """
    densify.check_installed()
    settings = TrainingSettings(steps, gaussians, sh_degree, strategy, seed)
    training = Training(load_dataset(data, Options(resolution, background, test_every)), settings)
    carry_out(
        training,
        steps,
        output,
        OUTPUT_NAMES,
        lambda: write_outputs(training, output),
        lambda: write_views(training, output),
    )
