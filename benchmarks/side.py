"""Fused side networks at published sizes, against the bare matrix products they are made of.

The limit of a network is its products by themselves, through torch, in the network's dtype; that of
guided pooling is one sum over its input. In bfloat16 the reference stores bfloat16 and computes in
float32, so that "times eager" says less there than "times the limit".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks import side_work
from benchmarks.claims import quotient, worst
from benchmarks.harness import Case, Family, Outputs, Row, Run, Unavailable
from benchmarks.side_shapes import POOLS, SHAPES, VSE_TEXT, Pool, Shape, Task, Values, make_task
from pyext.ops import side as ops
from pyext.reference import side as reference
from pyext.report import Claim

FORWARD, BOTH = "forward", "forward + backward"
PASSES = (FORWARD, BOTH)
OURS, EAGER, COMPILED, LIMIT = "pyext", "eager", "torch.compile", "limit"
DTYPES = (torch.float32, torch.bfloat16)
THREADS = (1, 2)  # that the claims are about
# A forward is continuous: a few roundings. A gradient jumps where rounding carries the argument of
# a ReLU over zero: if one of n does so, by 1 / sqrt(n) of its norm, and n is 10^5 and more; in
# bfloat16 a share of them does so that is as large as its rounding: by the root of that.
TOLERANCES = {
    (torch.float32, FORWARD): 1e-5,
    (torch.float32, BOTH): 5e-3,
    (torch.bfloat16, FORWARD): 1e-2,
    (torch.bfloat16, BOTH): 1e-1,
}


@dataclass(frozen=True)
class Problem:
    """A side network or a pooling in one dtype; every arm makes its own tensors of it."""

    shape: Shape | Pool
    dtype: torch.dtype
    passes: str

    def task(self, computed: torch.dtype | None = None) -> Task:
        """Its arguments; ``computed``: as stored, but given in another dtype."""
        return make_task(self.shape, Values(self.dtype, computed))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def input_name(shape: Shape | Pool, dtype: torch.dtype) -> str:
    return f"{shape}, {dtype_name(dtype)}"


def cases() -> Iterator[Case]:
    """Networks forward and both ways, then pooling, whose bar is on its forward."""
    shapes: tuple[Shape | Pool, ...] = (*SHAPES, *POOLS)
    for shape, dtype, passes in product(shapes, DTYPES, PASSES):
        if isinstance(shape, Pool) and passes != FORWARD:
            continue
        yield Case(
            input=input_name(shape, dtype),
            stage=passes,
            work=side_work.least(shape, dtype, backward=passes == BOTH),
            data=Problem(shape, dtype, passes),
            tolerance=TOLERANCES[dtype, passes],
        )


def make_run(function: Callable[..., Any], task: Task, passes: str) -> Run:
    """What one measurement of a task calls."""

    def forward() -> Outputs:
        result = function(*task.arguments, **task.options)
        return [result if isinstance(result, Tensor) else result.y]

    if passes == FORWARD:
        return torch.no_grad()(forward)
    return lambda: torch.autograd.grad(forward(), task.leaves, task.upstream)


def run_of(functions: ModuleType, problem: Problem, computed: torch.dtype | None = None) -> Run:
    task = problem.task(computed)
    return make_run(getattr(functions, task.function), task, problem.passes)


def expected(case: Case) -> Outputs:
    """The reference's, from the stored values, in float32 throughout."""
    return run_of(reference, case.data, torch.float32)()


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The claims, each on the worst of all it is about; what was not measured stays open."""
    times = {
        (row.input, row.stage, row.arm, row.threads): row.timing.median
        for row in rows
        if row.timing
    }

    def time_of(
        shape: Shape | Pool, dtype: torch.dtype, passes: str, arm: str, threads: int
    ) -> float | None:
        return times.get((input_name(shape, dtype), passes, arm, threads))

    def ratios(
        shapes: Sequence[Shape | Pool], passes: str, over: str, under: str
    ) -> dict[str, float | None]:
        """One arm's time over another's in every dtype, by where it was measured."""
        return {
            where(shape, dtype_name(dtype), threads): quotient(
                time_of(shape, dtype, passes, over, threads),
                time_of(shape, dtype, passes, under, threads),
            )
            for shape, dtype, threads in product(shapes, DTYPES, THREADS)
        }

    def gain_of_bfloat16() -> dict[str, float | None]:
        return {
            where(shape, passes, threads): quotient(
                *(time_of(shape, dtype, passes, OURS, threads) for dtype in DTYPES)
            )
            for shape, passes, threads in product(SHAPES, PASSES, THREADS)
        }

    products, faster = "times the bare matrix products", "times faster than"
    gain = gain_of_bfloat16() if multiplies_bfloat16() else {}
    return [
        worst(f"{FORWARD}, {products}", ratios(SHAPES, FORWARD, OURS, LIMIT), "<=", 1.2),
        worst(f"{BOTH}, {products}", ratios(SHAPES, BOTH, OURS, LIMIT), "<=", 1.3),
        worst(f"{BOTH}, {faster} eager", ratios(SHAPES, BOTH, EAGER, OURS), ">=", 1.25),
        worst("the same of VSE text", ratios([VSE_TEXT], BOTH, EAGER, OURS), ">=", 1.5),
        worst(f"{BOTH}, {faster} torch.compile", ratios(SHAPES, BOTH, COMPILED, OURS), ">=", 1),
        worst(f"bfloat16, {faster} float32", gain, ">=", 1.5),
        worst("guided pooling, times one read", ratios(POOLS, FORWARD, OURS, LIMIT), "<=", 2),
    ]


def where(shape: Shape | Pool, what: str, threads: int) -> str:
    return f"{shape.name}, {what}, threads: {threads}"


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it."""
    return any(has for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


FAMILY = Family(
    name="side",
    baseline=EAGER,
    seconds=150,
    tolerance=TOLERANCES[torch.float32, FORWARD],
    cases=cases,
    expected=expected,
    claims=claims,
    limit=LIMIT,
)


@FAMILY.arm(OURS)
def ours(case: Case) -> Run:
    return run_of(ops, case.data)


@FAMILY.arm(EAGER)
def eager(case: Case) -> Run:
    return run_of(reference, case.data)


@FAMILY.arm(COMPILED)
def compiled(case: Case) -> Run:
    problem: Problem = case.data
    if problem.passes == FORWARD:
        raise Unavailable("takes minutes to compile: only forward + backward")
    task = problem.task()
    # What was compiled for other cases would count against the number of recompilations.
    torch.compiler.reset()
    function = torch.compile(getattr(reference, task.function), dynamic=False)
    return make_run(function, task, problem.passes)


@FAMILY.arm(LIMIT)
def limit(case: Case) -> Run:
    """The bare products of a network; one read of what is pooled."""
    problem: Problem = case.data
    if isinstance(problem.shape, Pool):
        return side_work.make_read(problem.shape, problem.dtype)
    bare = side_work.products(problem.shape, problem.dtype)
    return side_work.make_run(bare.forward + (bare.backward if problem.passes == BOTH else ()))
