"""A torus, seen from all sides."""

import math
from pathlib import Path

import torch

from pyext.report import Claim, Report
from splat_orbit.orbit import orbit, save_gif


def torus(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and colours, [n, 3] each."""
    generator = torch.Generator().manual_seed(0)
    around, about = 2 * math.pi * torch.rand(2, n, generator=generator)
    ring = 1 + 0.4 * about.cos()
    points = torch.stack([ring * around.cos(), 0.4 * about.sin(), ring * around.sin()], -1)
    colors = torch.stack([around.cos(), around.sin(), about.cos()], -1) * 0.4 + 0.5
    return points, colors


def demo(output: Path) -> Report:
    """Draw a whole turn, and check that it ends where it began and shows the torus everywhere."""
    angles = torch.linspace(0, 2 * math.pi, 25)
    pictures = orbit(*torus(3000), angles)
    save_gif(output / "orbit.gif", pictures[:-1])
    seam = float((pictures[0] - pictures[-1]).abs().mean())
    faintest = float(pictures.mean(dim=(1, 2, 3)).min())
    return Report(
        title="A torus of 3,000 points, 24 views",
        rows=[{"mean difference of first and last view": seam, "faintest view": faintest}],
        claims=[
            Claim("a full turn ends where it began: mean difference", seam, "<=", 1e-3),
            Claim("every view shows the torus: mean brightness", faintest, ">=", 0.02),
        ],
        pictures={"orbit": output / "orbit.gif"},
    )
