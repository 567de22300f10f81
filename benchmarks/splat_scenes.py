"""Gaussian-splat rasterization on the scenes a method's author would try: small and large, with
footprints as they are and five times as wide, three channels and 32.

Results are checked against the same kernels in float64: those against plain PyTorch are checked in
the family `splat` and by the tests, on scenes that plain PyTorch can do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import splat_work
from benchmarks.harness import Case, Family, Outputs, Row, Run, Unavailable, Work
from benchmarks.scenes import Scene, garden
from benchmarks.splat import (
    BACKWARD,
    BOTH,
    COMPOSITE_BACKWARD,
    FORWARD,
    OURS,
    REFERENCE,
    Task,
    composite_task,
    draw_task,
    make_run,
    random_like,
    speedup,
)
from pyext.ops.splat import rasterization
from pyext.report import Claim

DRAW = "bin and composite"
SCENES = {  # Gaussians, width, height, footprint
    "10k": (10_000, 256, 256, 1.0),
    "10k, wide": (10_000, 256, 256, 5.0),
    "112k": (111_785, 648, 420, 1.0),
    "112k, wide": (111_785, 648, 420, 5.0),
}
LARGE = "112k"
MANY = 32  # channels
EAGER_PAIRS = (
    10_000_000  # (pixel, Gaussian) pairs of all tiles: plain PyTorch keeps some arrays of them
)

# Seconds of a public CPU rasterizer (OpenSplat, release of November 2025, one thread, scalar code)
# for the garden points at the size of ``LARGE``, recorded once on a core of this kind.
PEER = {FORWARD: 1.031, BACKWARD: 0.669}


@dataclass(frozen=True)
class Drawing:
    """A task, and how many pairs of pixels and Gaussians its tiles hold."""

    task: Task
    pairs: int


def cases() -> Iterator[Case]:
    """Of every scene what follows projection; of ``LARGE`` the whole, and with many channels."""
    for name, size in SCENES.items():
        scene = garden(*size)
        colors, _, meta = render(scene)
        counts = splat_work.count(meta, colors.shape[-1])
        pairs = counts.entries * splat_work.TILE**2
        backward = replace(composite_task(scene), passes=BACKWARD)
        yield case(name, DRAW, counts.bin() + counts.composite(), draw_task(scene), pairs)
        yield case(name, COMPOSITE_BACKWARD, counts.composite_backward(), backward, pairs)
        if name != LARGE:
            continue
        for channels in (scene.colors.shape[-1], MANY):
            yield from whole(name, with_channels(scene, channels), counts, pairs)


def whole(name: str, scene: Scene, counts: splat_work.Counts, pairs: int) -> Iterator[Case]:
    """All of `rasterization`: forward, backward and both."""
    channels = scene.colors.shape[-1]
    counts = replace(counts, channels=channels)
    arguments = tuple(getattr(scene, field.name) for field in fields(scene))
    colors, alphas, _ = render(scene)
    task = Task("rasterization", FORWARD, arguments, 6, random_like(colors, alphas))
    both = counts.forward() + counts.backward()
    works = {FORWARD: counts.forward(), BACKWARD: counts.backward(), BOTH: both}
    for passes, work in works.items():
        stage = stage_name(passes, channels)
        yield case(name, stage, work, replace(task, passes=passes), pairs)


def stage_name(passes: str, channels: int) -> str:
    return f"{passes}, {channels} channels"


def case(name: str, stage: str, work: Work, task: Task, pairs: int) -> Case:
    return Case(input=name, stage=stage, work=work, data=Drawing(task, pairs))


def render(scene: Scene) -> tuple[Tensor, Tensor, dict[str, Any]]:
    return rasterization(*(getattr(scene, field.name) for field in fields(scene)))


def with_channels(scene: Scene, channels: int) -> Scene:
    generator = torch.Generator().manual_seed(0)
    colors = torch.rand(len(scene.means), channels, generator=generator)
    return scene if channels == scene.colors.shape[-1] else replace(scene, colors=colors)


def expected(case: Case) -> Outputs:
    """Of the same kernels in float64, on the same tile lists where the task has them."""
    task: Task = case.data.task
    doubled = [x.double() if is_float(x) else x for x in task.arguments]
    upstream = tuple(x.double() for x in task.upstream)
    return make_run(OURS, replace(task, arguments=tuple(doubled), upstream=upstream))()


def is_float(x: object) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.float32


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The claims; what was not measured stays open."""
    found = {
        (row.input, row.stage, row.threads): row
        for row in rows
        if row.arm == "pyext" and row.timing
    }

    def row(name: str, stage: str, threads: int = 1) -> Row | None:
        return found.get((name, stage, threads))

    def seconds(stage: str) -> float | None:
        of_stage = row(LARGE, stage)
        return of_stage.timing.median if of_stage and of_stage.timing else None

    shares = [
        Claim(
            f"{name}: {stage} on 1 thread, share of the FMA peak",
            of_stage.share_of_fma_peak if (of_stage := row(name, stage)) else None,
            ">=",
            0.4,
        )
        for name in SCENES
        for stage in (DRAW, COMPOSITE_BACKWARD)
    ]
    both, many = stage_name(BOTH, 3), stage_name(BOTH, MANY)
    scaling = Claim(
        f"{LARGE}: {both}, times faster on 2 threads than on 1",
        speedup(row(LARGE, both), row(LARGE, both, 2)),
        ">=",
        1.8,
    )
    channels = Claim(
        f"{LARGE}: {many} on 1 thread, times as long as 3 channels",
        ratio(seconds(many), seconds(both)),
        "<=",
        3,
    )
    peer = [
        Claim(
            f"{LARGE}: {passes} on 1 thread, times faster than OpenSplat's {time:.3f} s, recorded",
            ratio(time, seconds(stage_name(passes, 3))),
            ">=",
            bar,
        )
        for (passes, time), bar in zip(PEER.items(), (25, 15), strict=True)
    ]
    return [*shares, scaling, channels, *peer]


def ratio(of: float | None, to: float | None) -> float | None:
    return of / to if of and to else None


FAMILY = Family(
    name="splat_scenes",
    baseline="eager",
    seconds=90,
    # Thresholds flip isolated pixels; everything else agrees to float32 rounding.
    tolerance=1e-3,
    cases=cases,
    expected=expected,
    claims=claims,
)


@FAMILY.arm("pyext")
def ours(case: Case) -> Run:
    return make_run(OURS, case.data.task)


@FAMILY.arm("eager")
def eager(case: Case) -> Run:
    if case.data.pairs > EAGER_PAIRS:
        raise Unavailable("takes minutes on this many pairs of pixels and Gaussians")
    return make_run(REFERENCE, case.data.task)
