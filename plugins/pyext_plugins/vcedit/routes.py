"""Four ways to bring many small maps through a scene and back: one result, timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pyext.ops.splat import rasterization, unproject, unproject_cells
from pyext.report import Claim, Value
from pyext.scene import Scene
from pyext_plugins.vcedit.cameras import Cameras
from pyext_plugins.vcedit.lifting import UNPROJECT, geometry, resize_bilinear, tile_lists
from pyext_plugins.vcedit.simulation import circle_of_cameras

GAUSSIANS, VIEWS, SIZE, MAP, CHANNELS = 10_000, 2, 512, 16, 72
RULE = UNPROJECT["count-mean"]  # as VcEdit's code, in all ways
TURNS = 3


def ball_of_gaussians(seed: int = 0) -> Scene:
    """Gaussians on a sphere, of sizes that cover it."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(GAUSSIANS, 3, generator=generator), dim=1)
    size = 2 / math.sqrt(GAUSSIANS)
    return Scene(
        means=0.8 * direction,
        scales=(size * (0.3 + 0.7 * torch.rand(GAUSSIANS, 3, generator=generator))).log(),
        quats=torch.randn(GAUSSIANS, 4, generator=generator),
        opacities=torch.logit(0.3 + 0.6 * torch.rand(GAUSSIANS, generator=generator)),
        sh0=torch.zeros(GAUSSIANS, 1, 3),
        shN=torch.zeros(GAUSSIANS, 0, 3),
    )


def as_published(maps: Tensor, cameras: Cameras, scene: Scene) -> Tensor:
    """VcEdit's pattern: every channel of every view projects, sorts and lifts by itself.

    Sums and counts of the views are added up, three channels are rendered at a time, as there.
    """
    large = resize_bilinear(maps, cameras.height, cameras.width)
    lifted = []
    for channel in range(CHANNELS):
        total, count = torch.zeros(len(scene)), torch.zeros(len(scene))
        for view in range(len(cameras)):
            one = slice(view, view + 1)
            values, _, hits = unproject(
                large[one, ..., channel : channel + 1].contiguous(),
                tile_lists(cameras[one], scene),
                mode=RULE["mode"],
                normalize=None,
            )
            total, count = total + values[:, 0], count + hits
        lifted.append(total / count.clamp(min=1))
    return torch.cat(
        [
            _rendered(torch.stack(lifted[first : first + 3], -1), cameras, scene)
            for first in range(0, CHANNELS, 3)
        ],
        -1,
    )


def channel_by_channel(maps: Tensor, cameras: Cameras, scene: Scene) -> Tensor:
    """Project and sort once, lift channels one at a time."""
    large = resize_bilinear(maps, cameras.height, cameras.width)
    meta = tile_lists(cameras, scene)
    lifted = [
        unproject(large[..., c : c + 1].contiguous(), meta, **RULE).values for c in range(CHANNELS)
    ]
    return _rendered(torch.cat(lifted, -1), cameras, scene)


def all_channels(maps: Tensor, cameras: Cameras, scene: Scene) -> Tensor:
    """Project, sort and march once for all channels."""
    large = resize_bilinear(maps, cameras.height, cameras.width)
    lifted = unproject(large, tile_lists(cameras, scene), **RULE).values
    return _rendered(lifted, cameras, scene)


def through_cells(maps: Tensor, cameras: Cameras, scene: Scene) -> Tensor:
    """Project, sort, build the two sparse matrices, multiply; no map is made large."""
    cells = unproject_cells(tile_lists(cameras, scene), MAP, MAP, **RULE)
    return cells.render(cells.lift(maps))


def _rendered(values: Tensor, cameras: Cameras, scene: Scene) -> Tensor:
    images = rasterization(**geometry(scene), colors=values, **cameras.arguments())[0]
    return resize_bilinear(images, MAP, MAP)


ROUTES: dict[str, Callable[[Tensor, Cameras, Scene], Tensor]] = {
    "a call per channel and view (as published)": as_published,
    "a call per channel": channel_by_channel,
    "one call": all_channels,
    "cells": through_cells,
}


def compare() -> tuple[list[dict[str, Value]], list[Claim]]:
    """Time the routes on one scene, in turns; the fastest turn of each counts.

    Returns:
        A row per route, and what is claimed.
    """
    scene, cameras = ball_of_gaussians(), circle_of_cameras(VIEWS, SIZE)
    maps = torch.rand(VIEWS, MAP, MAP, CHANNELS, generator=torch.Generator().manual_seed(1))
    seconds, results = dict.fromkeys(ROUTES, math.inf), {}
    for turn in range(TURNS):
        for name, route in ROUTES.items():
            if turn and name == next(iter(ROUTES)):
                continue  # seconds long: its first turn is as good as any
            began = time.perf_counter()
            results[name] = route(maps, cameras, scene)
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    first, single, one, cells = seconds.values()
    reference = results["one call"]
    off = {name: float((result - reference).abs().max()) for name, result in results.items()}
    rows: list[dict[str, Value]] = [
        {
            "route": name,
            "seconds": seconds[name],
            "times faster than published": first / seconds[name],
            "largest difference to one call": off[name],
        }
        for name in ROUTES
    ]
    what = f"{CHANNELS} channels of {MAP} x {MAP}, {VIEWS} views of {SIZE} x {SIZE}"
    return rows, [
        Claim(f"{what}: cells, times faster than the published pattern", first / cells, ">=", 20),
        Claim(f"{what}: one call, times faster than a call per channel", single / one, ">=", 2),
        Claim("largest difference between the four routes", max(off.values()), "<=", 1e-5),
    ]
