"""Merging one layer by least squares, against the way the authors' code does it.

Both ways are in solve_ways.py. Ours multiplies in float32, as the plugin does at this alpha, or in
float64. The limit of a Gram matrix is the vendor's product of half of it, in the type that it is
multiplied in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from benchmarks.claims import quotient, worst
from benchmarks.harness import Case, Family, Outputs, Row, Run, Unavailable, Work
from benchmarks.solve_layers import RANK, TASKS, Shape, exact_update, make_layer, random
from benchmarks.solve_ways import run_authors, run_ours
from pyext.ops import solve as ops
from pyext.report import Claim

GRAM, GRAM64, SOLVE, SVD = "gram", "gram, float64", "solve", "factored_svd"
OURS, OURS64, AUTHORS, LIMIT = "pyext", "pyext, float64", "authors' way", "limit"
PRODUCTS = {OURS: torch.float32, OURS64: torch.float64}
IN_GRAMS = {GRAM: OURS, GRAM64: OURS64}  # what is held against the limit in a stage

ENCODER = Shape("flan-t5-base encoder", 12800, 768)
DECODER = Shape("flan-t5-base decoder", 50, 768)
LLAMA = Shape("LLaMA-7B attention", 2048, 4096)
LLAMA_DOWN = Shape("LLaMA-7B down projection", 1024, 11008, 4096)
FACTORS = Shape("factors of rank 16", 0, 2048)
SHAPES = (ENCODER, DECODER, LLAMA, LLAMA_DOWN)


def work(shape: Shape, stage: str) -> Work:
    """The least: half a product for each Gram matrix, Cholesky, and solves for R rows."""
    m, d, r = shape.tokens, shape.width, TASKS * RANK
    gram = m * d * d
    if stage in IN_GRAMS:
        return Work(gram, 4 * m * d + 4 * d * d)
    if stage == SVD:
        return Work(8 * d * r * r, 16 * d * r)
    side = TASKS * m if shape.few else d  # of what is decomposed
    sums = (TASKS * m) ** 2 * d if shape.few else TASKS * gram
    flops = sums + 4 * TASKS * m * RANK * d + side**3 / 3 + 2 * side * side * r
    return Work(flops, 8 * TASKS * m * d + 4 * side * side)


def cases() -> Iterator[Case]:
    """Gram matrices where there are many tokens, then whole layers, then a truncation.

    A whole layer is compared with float64: the norm of a cross-Gram matrix is estimated to 1 %, and
    sets a ridge that is at most 5 % of the smallest eigenvalue; float32 sums are better than that.
    Gram matrices of float32 products are summed in float64 here and in float32 by the authors.
    """
    for shape in (ENCODER, LLAMA):
        for stage, tolerance in ((GRAM, 1e-4), (GRAM64, 1e-12)):
            yield Case(str(shape), stage, work(shape, stage), shape, tolerance)
    for shape in SHAPES:
        slow = shape is LLAMA_DOWN  # the authors' way takes a minute
        yield Case(str(shape), SOLVE, work(shape, SOLVE), shape, 5e-3, slow)
    yield Case(f"{FACTORS.name}, {FACTORS.width} wide", SVD, work(FACTORS, SVD), FACTORS, 1e-4)


def run_gram(shape: Shape, products: torch.dtype) -> Run:
    x = make_layer(shape).x[0]

    def run() -> Outputs:
        gram = torch.zeros(1, x.shape[1], x.shape[1], dtype=torch.float64)
        ops.gram_acc_(gram, x, products=products)
        return [gram[0]]

    return run


@cache
def factors() -> tuple[Tensor, Tensor]:
    d, r = FACTORS.width, TASKS * RANK
    return random(1, d, r, seed=60), random(1, r, d, seed=61)


def expected(case: Case) -> Outputs:
    if case.stage == SVD:
        # Singular values of a product from the eigenvalues of a small matrix, in float64.
        u, v = (x[0].double() for x in factors())
        values = torch.linalg.eigvals((u.T @ u) @ (v @ v.T)).real
        return [values.sqrt().sort(descending=True)[0]]
    if case.stage == SOLVE:
        return [exact_update(case.data)]
    x = make_layer(case.data).x[0].double()
    return [(x.T @ x).tril()]


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The claims, each on the worst of what it is about."""
    times = {(r.input, r.stage, r.arm, r.threads): r.timing.median for r in rows if r.timing}
    errors = {(r.input, r.stage, r.arm): r.relative_error for r in rows}
    counts = sorted({row.threads for row in rows if row.threads is not None}) or [1]

    def ratios(stage: str, over: str, arm: str = OURS) -> dict[str, float | None]:
        return {
            f"{case.input}, {case.stage}, threads: {count}": quotient(
                times.get((case.input, stage, over, count)),
                times.get((case.input, stage, arm, count)),
            )
            for case in cases()
            if case.stage == stage
            for count in (counts[-1:] if case.slow else counts)
        }

    rates = [ratios(stage, LIMIT, arm) for stage, arm in IN_GRAMS.items()]
    parts = {
        case.input: quotient(*(errors.get((case.input, SOLVE, arm)) for arm in (OURS, AUTHORS)))
        for case in cases()
        if case.stage == SOLVE
    }
    return [
        worst("a whole layer, times faster than the authors' way", ratios(SOLVE, AUTHORS), ">=", 6),
        worst("a whole layer, error over that of the authors' way", parts, "<=", 1),
        worst("Gram matrix, rate over the vendor's product", rates[0] | rates[1], ">=", 0.75),
        worst("factored_svd, times faster than a dense SVD", ratios(SVD, AUTHORS), ">=", 1000),
    ]


FAMILY = Family(
    name="solve",
    baseline=AUTHORS,
    seconds=60,
    tolerance=1e-3,
    cases=cases,
    expected=expected,
    claims=claims,
    limit=LIMIT,
)


@FAMILY.arm(OURS)
def ours(case: Case) -> Run:
    if case.stage == SVD:
        u, v = factors()
        return lambda: [ops.factored_svd(u, v, u.shape[2]).sv[0]]
    return multiplying(case, OURS)


@FAMILY.arm(OURS64)
def ours_in_float64(case: Case) -> Run:
    if case.stage == SVD:
        raise Unavailable("a truncation has no products of inputs")
    return multiplying(case, OURS64)


def multiplying(case: Case, arm: str) -> Run:
    if case.stage == SOLVE:
        return run_ours(case.data, PRODUCTS[arm])
    if IN_GRAMS[case.stage] != arm:
        raise Unavailable("multiplies in another type")
    return run_gram(case.data, PRODUCTS[arm])


@FAMILY.arm(AUTHORS)
def authors(case: Case) -> Run:
    if case.stage == SVD:
        u, v = factors()
        w = (u @ v)[0]
        return lambda: [torch.linalg.svd(w, full_matrices=False)[1][: u.shape[2]]]
    if case.stage == GRAM64:
        raise Unavailable("multiplies in another type")
    if case.stage == GRAM:
        x = make_layer(case.data).x[0]
        return lambda: [(x.T @ x).tril()]
    return run_authors(case.data)


@FAMILY.arm(LIMIT)
def limit(case: Case) -> Run:
    """The vendor's product of half the Gram matrix, as many operations as it needs."""
    if case.stage not in IN_GRAMS:
        raise Unavailable("only a Gram matrix has a product as its limit")
    x = make_layer(case.data).x[0].to(PRODUCTS[IN_GRAMS[case.stage]])
    half = x[:, : x.shape[1] // 2].T
    return lambda: [half @ x]
