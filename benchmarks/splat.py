"""Gaussian-splat rasterization: 10,000 Gaussians on surfaces, 512 x 512, three channels."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import splat_work
from benchmarks.harness import Case, Family, Outputs, Row, Run, Unavailable
from benchmarks.scenes import Scene, surfaces
from pyext.interface.splat import make_rasterization
from pyext.interface.splat_dialects import DIALECTS
from pyext.interface.splat_stages import Stages
from pyext.ops.splat import rasterization
from pyext.reference import splat as reference
from pyext.report import Claim
from pyext.runtime import build_info

GAUSSIANS, SIDE = 10_000, 512
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward + backward"
COMPOSITE, COMPOSITE_BACKWARD = "composite", "composite backward"

Functions = Mapping[str, Callable[..., Any]]  # what a task names, as one implementation has it


@dataclass(frozen=True)
class Task:
    """A function's arguments, of which the first are differentiable, and the upstream gradients.

    Args:
        function: `rasterization`, or what does most of its work once Gaussians are projected:
            ``draw``, which bins and composites, or ``composite``, on finished tile lists.
        passes: ``FORWARD``, ``BACKWARD`` or ``BOTH``.
        arguments: of the function.
        differentiable: how many of them, from the first.
        upstream: gradients of the first outputs; the function's other outputs are not looked at.
    """

    function: Literal["rasterization", "draw", "composite"]
    passes: str
    arguments: tuple[Any, ...]
    differentiable: int
    upstream: tuple[Tensor, ...]

    def to(self, device: str) -> Task:
        arguments = [x.to(device) if isinstance(x, Tensor) else x for x in self.arguments]
        upstream = [x.to(device) for x in self.upstream]
        return replace(self, arguments=tuple(arguments), upstream=tuple(upstream))


def cases() -> Iterator[Case]:
    """Forward, backward and both, then the compositor by itself, both ways."""
    scene = surfaces(GAUSSIANS, SIDE, SIDE)
    arguments = tuple(getattr(scene, field.name) for field in fields(scene))
    colors, alphas, meta = rasterization(*arguments)
    counts = splat_work.count(meta, colors.shape[-1])
    whole = Task("rasterization", FORWARD, arguments, 6, random_like(colors, alphas))
    composite = composite_task(scene)
    for stage, work, task in (
        (FORWARD, counts.forward(), whole),
        (BACKWARD, counts.backward(), replace(whole, passes=BACKWARD)),
        (BOTH, counts.forward() + counts.backward(), replace(whole, passes=BOTH)),
        (COMPOSITE, counts.composite(), composite),
        (COMPOSITE_BACKWARD, counts.composite_backward(), replace(composite, passes=BACKWARD)),
    ):
        name = f"surfaces, {GAUSSIANS} Gaussians, {SIDE} x {SIDE}"
        yield Case(input=name, stage=stage, work=work, data=task)


def composite_task(scene: Scene) -> Task:
    """The compositor's forward, on what projection and binning make of a scene."""
    composite = stage_arguments(scene)["composite"]
    return Task("composite", FORWARD, composite, 4, upstream_of(scene))


def draw_task(scene: Scene) -> Task:
    """Binning and the compositor's forward, on what projection makes of a scene."""
    stages = stage_arguments(scene)
    _, radii, depths, _, _, width, height, exact = stages["bin"]
    arguments = (*stages["composite"][:4], radii, depths, width, height, exact)
    return Task("draw", FORWARD, arguments, 4, upstream_of(scene))


def stage_arguments(scene: Scene) -> dict[str, tuple[Any, ...]]:
    """What the stages ``bin`` and ``composite`` are called with when a scene is rendered."""
    ops = torch.ops.pyext
    found: dict[str, tuple[Any, ...]] = {}

    def record(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        def stage(*arguments: Any) -> Any:
            found[name] = arguments
            return op(*arguments)

        return stage

    recording = make_rasterization(
        Stages(
            ops.splat_project,
            ops.splat_sh,
            record("bin", ops.splat_bin),
            record("composite", ops.splat_composite),
        )
    )
    recording(*(getattr(scene, field.name) for field in fields(scene)))
    return found


def upstream_of(scene: Scene) -> tuple[Tensor, ...]:
    """Upstream gradients of a compositor's image and transmittance."""
    size, channels = (1, scene.height, scene.width), scene.colors.shape[-1]
    return random_like(torch.empty(*size, channels), torch.empty(size))


def make_draw(bin: Callable[..., Any], composite: Callable[..., Any]) -> Callable[..., Any]:
    """``draw`` of an implementation, with the numbers of gsplat 1.5."""
    alpha_max = DIALECTS["gsplat-1.5"].alpha_max

    def draw(
        means2d: Tensor,
        conics: Tensor,
        opacities: Tensor,
        features: Tensor,
        radii: Tensor,
        depths: Tensor,
        width: int,
        height: int,
        exact: bool,
    ) -> Any:
        geometry = (means2d, radii, depths, conics, opacities)
        lists = bin(*(x.detach() for x in geometry), width, height, exact)
        splats = (means2d, conics, opacities, features)
        return composite(*splats, *lists, width, height, alpha_max)

    return draw


def random_like(*tensors: Tensor) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(x.shape, generator=generator) for x in tensors)


def make_run(functions: Functions, task: Task) -> Run:
    """What one measurement of a task calls; the graph of a backward is made beforehand."""
    function = functions[task.function]
    leaves = [x.detach().clone().requires_grad_() for x in task.arguments[: task.differentiable]]
    constants = task.arguments[task.differentiable :]

    def forward() -> Outputs:
        return function(*leaves, *constants)[: len(task.upstream)]

    def backward(outputs: Outputs, keep: bool = False) -> Outputs:
        return torch.autograd.grad(outputs, leaves, task.upstream, retain_graph=keep)

    if task.passes == FORWARD:
        return torch.no_grad()(forward)
    if task.passes == BACKWARD:
        outputs = forward()
        return lambda: backward(outputs, keep=True)
    return lambda: backward(forward())


def expected(case: Case) -> Outputs:
    return make_run(REFERENCE, case.data)()


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The claims; what this machine could not measure stays open."""
    found = {(row.stage, row.threads): row for row in rows if row.arm == "pyext" and row.timing}
    both = found.get((BOTH, 1))
    faster = Claim(
        "forward + backward on 1 thread, times faster than eager",
        both.times_eager if both else None,
        ">=",
        60,
    )
    scaling = Claim(
        "forward + backward, times faster on 2 threads than on 1",
        speedup(both, found.get((BOTH, 2))),
        ">=",
        1.7,
    )
    shares = [
        Claim(
            f"{stage} on 1 thread, share of the FMA peak",
            row.share_of_fma_peak if (row := found.get((stage, 1))) else None,
            ">=",
            0.4,
        )
        for stage in (FORWARD, BACKWARD)
    ]
    return [faster, scaling, *shares]


def speedup(one: Row | None, two: Row | None) -> float | None:
    """How many times faster the second row is; None where two threads would share a core."""
    if one is None or two is None or (os.cpu_count() or 1) < 2:
        return None
    assert one.timing and two.timing
    return one.timing.median / two.timing.median


FAMILY = Family(
    name="splat",
    baseline="eager",
    seconds=60,
    # Thresholds flip isolated pixels; everything else agrees to float32 rounding.
    tolerance=1e-3,
    cases=cases,
    expected=expected,
    claims=claims,
)

OURS: Functions = {
    "rasterization": rasterization,
    "draw": make_draw(torch.ops.pyext.splat_bin, torch.ops.pyext.splat_composite),
    "composite": torch.ops.pyext.splat_composite,
}
REFERENCE: Functions = {
    "rasterization": reference.rasterization,
    "draw": make_draw(reference.bin, reference.composite),
    "composite": reference.composite,
}


@FAMILY.arm("pyext")
def ours(case: Case) -> Run:
    return make_run(OURS, case.data)


@FAMILY.arm("eager")
def eager(case: Case) -> Run:
    return make_run(REFERENCE, case.data)


@functools.cache
def compile_tile_compositor(training: bool) -> Callable[..., tuple[Tensor, ...]] | None:
    """The reference's tile compositor, compiled once for lists of any length.

    None where each length would be compiled anew: a scene has a hundred of them.
    """
    compiled = torch.compile(reference.composite_tile, dynamic=True, fullgraph=True)

    def compile_for(length: int) -> None:
        tile = [torch.rand(length, *shape) for shape in ((2,), (3,), (), (3,))]
        compiled(
            torch.rand(256, 2),
            DIALECTS["gsplat-1.5"].alpha_max,
            *(x.requires_grad_(training) for x in tile),
        )

    compile_for(5)
    try:
        with torch._dynamo.config.patch(error_on_recompile=True):
            for length in (9, 12, 17):
                compile_for(length)
    except torch._dynamo.exc.RecompileError:
        return None
    return compiled


@FAMILY.arm("torch.compile")
def compiled(case: Case) -> Run:
    tile_compositor = compile_tile_compositor(training=case.data.passes != FORWARD)
    if tile_compositor is None:
        raise Unavailable("torch.compile makes one kernel per list length")
    composite = reference.make_composite(tile_compositor)
    whole = make_rasterization(Stages(reference.project, reference.sh, reference.bin, composite))
    return make_run({"rasterization": whole, "composite": composite}, case.data)


def synchronized(functions: Functions, case: Case) -> Run:
    """A run on the CUDA device that returns when the device is done."""
    run = make_run(functions, case.data.to("cuda"))

    def run_to_the_end() -> Outputs:
        outputs = run()
        torch.cuda.synchronize()
        return outputs

    return run_to_the_end


@FAMILY.arm("pyext, CUDA", device="cuda")
def ours_on_cuda(case: Case) -> Run:
    if not torch.cuda.is_available():
        raise Unavailable("no CUDA device")
    if not build_info()["cuda"]:
        raise Unavailable("pyext was built without its CUDA kernels")
    return synchronized(OURS, case)


@FAMILY.arm("gsplat, CUDA", device="cuda")
def gsplat_on_cuda(case: Case) -> Run:
    if not torch.cuda.is_available():
        raise Unavailable("no CUDA device")
    if case.data.function != "rasterization":
        raise Unavailable("gsplat's stages take other tile lists")
    try:
        from gsplat import rasterization as theirs
    except ImportError as error:
        raise Unavailable(f"gsplat is not installed: {error}") from error
    return synchronized({"rasterization": theirs}, case)
