"""Many small maps to Gaussians by two routes: a call per channel, or one matrix for all of them.

The scene is rendered beforehand. The first route stretches a channel's map to the image and lifts
it, 72 times over. The second builds the matrices of `unproject_cells` and multiplies; its matrix
serves every further set of maps, so that the product is timed by itself as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Case, Family, Outputs, Row, Run, Work
from benchmarks.scenes import surfaces
from benchmarks.splat_work import FLOAT
from pyext.ops.splat import rasterization, unproject, unproject_cells
from pyext.report import Claim

GAUSSIANS, SIDE, MAP, CHANNELS = 50_000, 512, 16, 72
PER_CHANNEL, CELLS, REUSED = "a call per channel", "cells, built anew", "cells, used again"


@dataclass(frozen=True)
class Maps:
    """Maps [1, h, w, D] and the rendering whose Gaussians they are lifted to."""

    maps: Tensor
    meta: dict[str, Any]
    side: int  # of the image


def cases() -> Iterator[Case]:
    scene = surfaces(GAUSSIANS, SIDE, SIDE)
    _, _, meta = rasterization(*(getattr(scene, field.name) for field in fields(scene)))
    maps = torch.rand(1, MAP, MAP, CHANNELS, generator=torch.Generator().manual_seed(0))
    yield Case(
        input=f"surfaces, {GAUSSIANS} Gaussians, {SIDE} x {SIDE}, maps of {MAP} x {MAP}",
        stage=f"lift {CHANNELS} channels",
        work=least_work(maps, meta),
        data=Maps(maps, meta, SIDE),
    )


def least_work(maps: Tensor, meta: dict[str, Any]) -> Work:
    """What no route can do without: the product with the matrix, wherever that comes from."""
    channels = maps.shape[-1]
    matrix = unproject_cells(meta, *maps.shape[1:3]).lift_matrix
    numbers = maps.numel() + matrix.shape[0] * channels
    return Work(2 * matrix.values().numel() * channels, FLOAT * numbers)


def stretched(data: Maps, maps: Tensor) -> Tensor:
    planes = maps.movedim(-1, 1)
    size = (data.side, data.side)
    large = F.interpolate(planes, size, mode="bilinear", align_corners=False)
    return large.movedim(1, -1).contiguous()


def expected(case: Case) -> Outputs:
    """All channels in one call, stretched in float64: in float32 that alone costs digits."""
    data: Maps = case.data
    return [unproject(stretched(data, data.maps.double()).float(), data.meta).values]


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The claims; what was not measured stays open."""
    one = {row.arm: row for row in rows if row.threads == 1 and row.timing}
    differences = [row.max_difference for row in rows if row.max_difference is not None]
    what = f"{CHANNELS} channels on 1 thread, times faster than a call per channel"
    return [
        Claim(f"{arm}: {what}", row.times_eager if (row := one.get(arm)) else None, ">=", 20)
        for arm in (CELLS, REUSED)
    ] + [
        Claim(
            "largest difference of any route from all channels in one call",
            max(differences, default=None),
            "<=",
            1e-5,
        )
    ]


FAMILY = Family(
    name="splat_routes",
    baseline=PER_CHANNEL,
    seconds=30,
    tolerance=1e-5,
    cases=cases,
    expected=expected,
    claims=claims,
)


@FAMILY.arm(PER_CHANNEL)
def per_channel(case: Case) -> Run:
    data: Maps = case.data

    def run() -> Outputs:
        lifted = [
            unproject(stretched(data, data.maps[..., c : c + 1]), data.meta).values
            for c in range(data.maps.shape[-1])
        ]
        return [torch.cat(lifted, -1)]

    return run


@FAMILY.arm(CELLS)
def cells(case: Case) -> Run:
    data: Maps = case.data
    height, width = data.maps.shape[1:3]
    return lambda: [unproject_cells(data.meta, height, width).lift(data.maps)]


@FAMILY.arm(REUSED)
def cells_reused(case: Case) -> Run:
    data: Maps = case.data
    built = unproject_cells(data.meta, *data.maps.shape[1:3])
    return lambda: [built.lift(data.maps)]
