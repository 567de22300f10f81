"""Inversion circles and DDIM steps at the sizes of Stable Diffusion's latents.

Both are bound by memory. The eager arm of the circle is the paper's formula over all pairs and
angles at once, as one writes it in PyTorch: in float32, with the angle by its arc cosine. That of a
step is guidance and the scheduler of diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from benchmarks.harness import Case, Family, Outputs, Row, Run, Unavailable, Work
from pyext.ops import circle as ops
from pyext.reference import circle as reference
from pyext.report import Claim

LATENT = (4, 64, 64)
WIDTH = math.prod(LATENT)
INTERP, STEP = "circle_interp", "ddim_affine_step"
OURS, EAGER = "pyext", "eager"
REUSED = "pyext, out"  # to memory that the process has already, as a copy is
DTYPES = (torch.float32, torch.float16)
# Pairs and angles; the bars are on the first.
SIZES = ((64, 16), (64, 1))
BATCHES = (64, 1)
GUIDANCE = 7.5
FROM, TO = 601, 561  # timesteps: two of twenty-five
# The eager arms round in between: the scheduler differences that guidance then multiplies by 7.5.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2}


@dataclass(frozen=True)
class Circles:
    """Pairs of disjoint latents, and angles."""

    pool: Tensor
    pairs: Tensor
    angles: Tensor


@dataclass(frozen=True)
class Step:
    """A batch of latents, and what a network predicts without and with the condition."""

    eps: Tensor
    x: Tensor


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def interp_input(pairs: int, angles: int, dtype: torch.dtype) -> str:
    return f"{pairs} pairs, {angles} angles, {dtype_name(dtype)}"


def step_input(batch: int, dtype: torch.dtype) -> str:
    return f"batch {batch}, {dtype_name(dtype)}"


def cases() -> Iterator[Case]:
    for (count, angles), dtype in product(SIZES, DTYPES):
        generator = torch.Generator().manual_seed(0)
        pool = torch.randn(2 * count, *LATENT, generator=generator).to(dtype)
        phi = 2 * math.pi * torch.rand(count, angles, generator=generator, dtype=torch.float64)
        yield Case(
            input=interp_input(count, angles, dtype),
            stage=INTERP,
            work=Work(
                flops=count * WIDTH * (6 + 3 * angles),
                bytes=count * WIDTH * (2 + angles) * dtype.itemsize,
            ),
            data=Circles(pool, torch.arange(2 * count).reshape(count, 2), phi),
            tolerance=TOLERANCES[dtype],
        )
    for batch, dtype in product(BATCHES, DTYPES):
        generator = torch.Generator().manual_seed(0)
        eps = torch.randn(2 * batch, *LATENT, generator=generator).to(dtype)
        x = torch.randn(batch, *LATENT, generator=generator).to(dtype)
        yield Case(
            input=step_input(batch, dtype),
            stage=STEP,
            work=Work(flops=6 * x.numel(), bytes=4 * x.numel() * dtype.itemsize),
            data=Step(eps, x),
            tolerance=TOLERANCES[dtype],
        )


def coefficients(levels: Tensor) -> Tensor:
    return ops.ddim_coefficients(float(levels[FROM]), float(levels[TO]))


def noise_levels() -> Tensor:
    """Products of alphas of Stable Diffusion's schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    return torch.cumprod(1 - betas, 0)


def expected(case: Case) -> Outputs:
    data = case.data
    if isinstance(data, Circles):
        return [reference.interp(data.pool, data.pairs, data.angles).z]
    coef = coefficients(noise_levels())
    options = {"guidance": GUIDANCE, "cfg": True}
    return [reference.ddim_affine_step(data.eps, data.x, coef, **options)]


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Shares of the bandwidth and gains over eager, each the worst over dtypes and threads."""

    def worst(stage: str, size: str, arm: str, of: str) -> float | None:
        """Of all rows of an arm on inputs whose name begins so; None where one is missing."""
        figures = [
            getattr(row, of)
            for row in rows
            if row.arm == arm and row.stage == stage and row.input.startswith(size)
        ]
        return min(figures) if figures and None not in figures else None

    def about(stage: str, size: str, arm: str, gain: float) -> list[Claim]:
        text = f"{arm}: {stage}, {size}"
        share = worst(stage, size + ",", arm, "share_of_limit")
        faster = worst(stage, size + ",", arm, "times_eager")
        return [
            Claim(f"{text}: share of the copy's bandwidth", share, ">=", 0.85),
            Claim(f"{text}: times faster than eager", faster, ">=", gain),
        ]

    (pairs, angles), batch = SIZES[0], BATCHES[0]
    circles = f"{pairs} pairs, {angles} angles"
    fresh = worst(INTERP, circles + ",", OURS, "times_eager")
    return [
        *about(INTERP, circles, REUSED, 8),
        Claim(f"{OURS}: {INTERP}, {circles}: times faster than eager", fresh, ">=", 8),
        *about(STEP, f"batch {batch}", OURS, 4),
    ]


FAMILY = Family(
    name="circle",
    baseline=EAGER,
    seconds=30,
    tolerance=TOLERANCES[torch.float32],
    cases=cases,
    expected=expected,
    claims=claims,
)


@FAMILY.arm(OURS)
def ours(case: Case) -> Run:
    data = case.data
    if isinstance(data, Circles):
        return lambda: [ops.interp(data.pool, data.pairs, data.angles).z]
    coef = coefficients(noise_levels())
    return lambda: [ops.ddim_affine_step(data.eps, data.x, coef, guidance=GUIDANCE, cfg=True)]


@FAMILY.arm(REUSED)
def reused(case: Case) -> Run:
    data = case.data
    if not isinstance(data, Circles):
        raise Unavailable("only for circles")
    out = torch.empty(*data.angles.shape, *LATENT, dtype=data.pool.dtype)
    return lambda: [ops.interp(data.pool, data.pairs, data.angles, out=out).z]


@FAMILY.arm(EAGER)
def eager(case: Case) -> Run:
    data = case.data
    if isinstance(data, Circles):
        return lambda: [eager_circles(data)]
    return eager_step(data)


def eager_circles(data: Circles) -> Tensor:
    rows = data.pool.flatten(1)[data.pairs.T].float()
    a, b = rows
    alpha = torch.acos((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)))[:, None]
    phi = data.angles.float()
    first = torch.sin(alpha + phi) / torch.sin(alpha)
    second = -torch.sin(phi) / torch.sin(alpha)
    z = first[..., None] * a[:, None] + second[..., None] * b[:, None]
    return z.to(data.pool.dtype).reshape(*phi.shape, *data.pool.shape[1:])


def eager_step(data: Step) -> Run:
    try:
        from diffusers import DDIMScheduler
    except ImportError as error:
        raise Unavailable("needs diffusers") from error
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(25)

    def run() -> Outputs:
        without, condition = data.eps.chunk(2)
        guided = without + GUIDANCE * (condition - without)
        return [scheduler.step(guided, FROM, data.x).prev_sample]

    return run
