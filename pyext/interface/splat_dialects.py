"""Numeric dialects of Gaussian splatting: choices that published rasterizers make differently."""

from __future__ import annotations

from typing import NamedTuple

# What all of them share: what counts, and when a pixel ends.
ALPHA_MIN = 1 / 255
TRANSMITTANCE_MIN = 1e-4


class Dialect(NamedTuple):
    """The choices of one rasterizer."""

    alpha_max: float  # where alpha is clamped
    compensation_min: float | None  # floor of the antialiasing factor; None: it has no such mode
    circle: bool  # extent: a circle of 3 sigma of the longer axis, instead of a box per axis


DIALECTS = {
    "gsplat-1.5": Dialect(alpha_max=0.999, compensation_min=0.0, circle=False),
    "gsplat-main": Dialect(alpha_max=0.99, compensation_min=0.005, circle=False),
    "inria": Dialect(alpha_max=0.99, compensation_min=None, circle=True),
}
