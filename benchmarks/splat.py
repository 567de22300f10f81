"""Gaussian-splat rasterization: 10,000 Gaussians on surfaces, 512 x 512, three channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from benchmarks import splat_work
from benchmarks.harness import Case, Family, Outputs, Row, Run, Unavailable
from benchmarks.scenes import surfaces
from pyext.interface.splat import ALPHA_MAX, Rasterization, make_rasterization
from pyext.ops.splat import rasterization
from pyext.reference import splat as reference
from pyext.report import Claim

GAUSSIANS, SIDE = 10_000, 512
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward + backward"


@dataclass(frozen=True)
class Input:
    """Arguments of `rasterization`, the first six differentiable, and the upstream gradients."""

    arguments: tuple[Any, ...]
    upstream: tuple[Tensor, Tensor]  # colours [1, H, W, 3], alphas [1, H, W, 1]

    def to(self, device: str) -> Input:
        arguments = [x.to(device) if isinstance(x, Tensor) else x for x in self.arguments]
        colors, alphas = (x.to(device) for x in self.upstream)
        return Input(tuple(arguments), (colors, alphas))


def cases() -> Iterator[Case]:
    scene = surfaces(GAUSSIANS, SIDE, SIDE)
    arguments = tuple(getattr(scene, field.name) for field in fields(scene))
    colors, alphas, meta = rasterization(*arguments)
    generator = torch.Generator().manual_seed(0)
    upstream = tuple(torch.randn(x.shape, generator=generator) for x in (colors, alphas))
    data = Input(arguments, (upstream[0], upstream[1]))
    counts = splat_work.count(meta, colors.shape[-1])
    forward, backward = counts.forward(), counts.backward()
    name = f"surfaces, {GAUSSIANS} Gaussians, {SIDE} x {SIDE}"
    for stage, work in (
        (FORWARD, forward),
        (BACKWARD, backward),
        (BOTH, splat_work.add(forward, backward)),
    ):
        yield Case(input=name, stage=stage, work=work, data=data)


def make_run(implementation: Rasterization, stage: str, data: Input) -> Run:
    """What one measurement of a stage calls; the graph of ``backward`` is made beforehand."""
    leaves = [x.detach().clone().requires_grad_() for x in data.arguments[:6]]

    def forward() -> tuple[Tensor, Tensor]:
        colors, alphas, _ = implementation(*leaves, *data.arguments[6:])
        return colors, alphas

    def backward(outputs: tuple[Tensor, Tensor], keep: bool = False) -> Outputs:
        return torch.autograd.grad(outputs, leaves, data.upstream, retain_graph=keep)

    if stage == FORWARD:
        return torch.no_grad()(forward)
    if stage == BACKWARD:
        outputs = forward()
        return lambda: backward(outputs, keep=True)
    return lambda: backward(forward())


def expected(case: Case) -> Outputs:
    return make_run(reference.rasterization, case.stage, case.data)()


def claims(rows: Sequence[Row]) -> list[Claim]:
    def find(stage: str, threads: int) -> Row | None:
        found = [r for r in rows if (r.arm, r.stage, r.threads) == ("pyext", stage, threads)]
        return found[0] if found and found[0].timing else None

    one, two = find(BOTH, 1), find(BOTH, 2)
    scaling = None
    if one and two and one.timing and two.timing:
        scaling = one.timing.median / two.timing.median
    return [
        Claim(
            "forward + backward on 1 thread, times faster than eager",
            one.times_eager if one else None,
            ">=",
            60,
        ),
        Claim("forward + backward, times faster on 2 threads than on 1", scaling, ">=", 1.7),
        *(
            Claim(
                f"{stage} on 1 thread, share of the FMA peak",
                row.share_of_limit if (row := find(stage, 1)) else None,
                ">=",
                0.4,
            )
            for stage in (FORWARD, BACKWARD)
        ),
    ]


FAMILY = Family(
    name="splat",
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
    return make_run(rasterization, case.stage, case.data)


@FAMILY.arm("eager")
def eager(case: Case) -> Run:
    return make_run(reference.rasterization, case.stage, case.data)


def compile_tile_compositor(training: bool) -> Callable[..., tuple[Tensor, ...]]:
    """The reference's tile compositor, compiled once for lists of any length.

    Raises:
        Unavailable: every length would be compiled anew, of which a scene has a hundred.
    """
    compiled = torch.compile(reference.composite_tile, dynamic=True, fullgraph=True)
    try:
        with torch._dynamo.config.patch(error_on_recompile=True):
            for length in (5, 9, 12, 17):
                tile = [torch.rand(length, *shape) for shape in ((2,), (3,), (), (3,))]
                compiled(torch.rand(256, 2), ALPHA_MAX, *(x.requires_grad_(training) for x in tile))
    except torch._dynamo.exc.RecompileError as error:
        raise Unavailable("torch.compile makes one kernel per list length") from error
    return compiled


@FAMILY.arm("torch.compile")
def compiled(case: Case) -> Run:
    tile_compositor = compile_tile_compositor(training=case.stage != FORWARD)
    implementation = make_rasterization(
        reference.project, reference.bin, reference.make_composite(tile_compositor)
    )
    return make_run(implementation, case.stage, case.data)


def on_cuda(implementation: Callable[[], Rasterization]) -> Callable[[Case], Run]:
    def build(case: Case) -> Run:
        if not torch.cuda.is_available():
            raise Unavailable("no CUDA device")
        run = make_run(implementation(), case.stage, case.data.to("cuda"))

        def synchronized() -> Outputs:
            outputs = run()
            torch.cuda.synchronize()
            return outputs

        return synchronized

    return build


@FAMILY.arm("pyext, CUDA")
@on_cuda
def ours_on_cuda() -> Rasterization:
    return rasterization


@FAMILY.arm("gsplat, CUDA")
@on_cuda
def gsplat_on_cuda() -> Rasterization:
    try:
        from gsplat import rasterization as theirs
    except ImportError as error:
        raise Unavailable(f"gsplat is not installed: {error}") from error
    return theirs
