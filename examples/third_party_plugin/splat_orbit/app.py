"""The command line."""

import math
from pathlib import Path
from typing import Annotated

import torch
import typer

from splat_orbit.orbit import load_points, orbit, save_gif

app = typer.Typer(no_args_is_help=True)


@app.callback()
def commands() -> None:
    """Draw a point cloud from a camera that circles it."""


@app.command()
def render(
    points: Annotated[Path, typer.Argument(help="A .npy file, [N, 3] or [N, 6].")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .gif to write.")],
    frames: Annotated[int, typer.Option(min=1, max=360, help="Views in a turn.")] = 36,
) -> None:
    """Write an animated picture of the cloud."""
    angles = torch.arange(frames) * (2 * math.pi / frames)
    save_gif(output, orbit(*load_points(points), angles))
    print(f"{output}: {frames} views")
