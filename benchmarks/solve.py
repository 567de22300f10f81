"""Merging one layer by least squares, against the way the authors' code does it.

That way, rewritten from the equations: the activations of every task are kept, their Gram and
cross-Gram matrices are made and regularised in float32, only their weighted sums are float64, LU
solves for as many right-hand sides as the layer has outputs, and outputs of all tokens are made for
a residual that nothing uses. Ours sums float64 Gram matrices, projects the inputs on the adapters,
and solves for as many right-hand sides as the adapters have ranks.

The limit of a Gram matrix is the vendor's float64 product of half of it, from inputs in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from benchmarks.claims import worst
from benchmarks.harness import Case, Family, Outputs, Row, Run, Unavailable, Work
from pyext.ops import solve as ops
from pyext.report import Claim

GRAM, SOLVE, SVD = "gram", "solve", "factored_svd"
OURS, AUTHORS, LIMIT = "pyext", "authors' way", "limit"
TASKS, RANK, ALPHA, SCALE = 2, 8, 1e-4, 4.0
SKETCH = 64  # columns that stand for an input where only a norm is wanted


@dataclass(frozen=True)
class Shape:
    """Of a layer: tokens of each task, inputs and outputs alike."""

    name: str
    tokens: int
    width: int

    def __str__(self) -> str:
        return f"{self.name}, {TASKS} x {self.tokens} tokens, {self.width} wide"


ENCODER = Shape("flan-t5-base encoder", 12800, 768)
DECODER = Shape("flan-t5-base decoder", 50, 768)
LLAMA = Shape("LLaMA-7B attention", 2048, 4096)
FACTORS = Shape("factors of rank 16", 0, 2048)
SHAPES = (ENCODER, DECODER, LLAMA)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Layer:
    """What is known of a layer: inputs of the single models and of the merged one, and adapters."""

    shape: Shape
    x: list[Tensor] = field(repr=False)  # [M, d] each
    merged: list[Tensor] = field(repr=False)
    a: list[Tensor] = field(repr=False)  # [r, d]
    b: list[Tensor] = field(repr=False)  # [d, r]
    base: Tensor = field(repr=False)  # [d, d]


@cache
def make_layer(shape: Shape) -> Layer:
    rows, d = shape.tokens, shape.width
    loud = torch.logspace(0, -1, d)  # channels differ in size
    x = [random(rows, d, seed=i) * loud for i in range(TASKS)]
    merged = [xi + 0.1 * random(rows, d, seed=10 + i) * loud for i, xi in enumerate(x)]
    a = [random(RANK, d, seed=20 + i) / d**0.5 for i in range(TASKS)]
    b = [random(d, RANK, seed=30 + i) / RANK**0.5 for i in range(TASKS)]
    return Layer(shape, x, merged, a, b, random(d, d, seed=40) / d**0.5)


def work(shape: Shape, stage: str) -> Work:
    """The least: half a product for each Gram matrix, Cholesky, and solves for R rows."""
    m, d, r = shape.tokens, shape.width, TASKS * RANK
    gram = m * d * d
    if stage == GRAM:
        return Work(gram, 4 * m * d + 4 * d * d)
    if stage == SVD:
        return Work(8 * d * r * r, 16 * d * r)
    flops = TASKS * (gram + 4 * m * RANK * d) + d**3 / 3 + 2 * d * d * r
    return Work(flops, 8 * TASKS * m * d + 4 * d * d)


def cases() -> Iterator[Case]:
    """Gram matrices where there are many tokens, then whole layers, then a truncation.

    A whole layer is compared with float64: a sketch of 64 columns is off by about 5 %, and sets a
    ridge that is at most 5 % of the smallest eigenvalue; float32 sums are better than that. Gram
    matrices of the authors' way are float32.
    """
    for shape in (ENCODER, LLAMA):
        yield Case(str(shape), GRAM, work(shape, GRAM), shape, 1e-4)
    for shape in SHAPES:
        yield Case(str(shape), SOLVE, work(shape, SOLVE), shape, 5e-3)
    yield Case(f"{FACTORS.name}, {FACTORS.width} wide", SVD, work(FACTORS, SVD), FACTORS, 1e-4)


def run_gram(shape: Shape) -> Run:
    x = make_layer(shape).x[0]

    def run() -> Outputs:
        gram = torch.zeros(1, x.shape[1], x.shape[1], dtype=torch.float64)
        ops.gram_acc_(gram, x)
        return [gram[0]]

    return run


def energies(layer: Layer) -> list[Tensor]:
    """||W||_F^2 of the tasks' whole weights."""
    return [
        (layer.base + SCALE * b @ a).double().square().sum()
        for a, b in zip(layer.a, layer.b, strict=True)
    ]


@dataclass(frozen=True)
class Collected:
    """What the single models' run leaves, once: no later solve touches their inputs again."""

    lam: Tensor  # [N], weights of the tasks
    h: list[Tensor]  # [M, r] each, inputs projected on the adapters
    sketch: list[Tensor]  # [M, SKETCH], inputs by random signs; or the inputs, of few tokens


def collect(layer: Layer) -> Collected:
    outputs = [
        x @ layer.base.T + SCALE * (x @ a.T) @ b.T
        for x, a, b in zip(layer.x, layer.a, layer.b, strict=True)
    ]
    energy = torch.zeros(TASKS, dtype=torch.float64)
    for i, y in enumerate(outputs):
        ops.sumsq_acc_(energy[i : i + 1], y)
    h = [x @ a.T for x, a in zip(layer.x, layer.a, strict=True)]
    few = layer.shape.tokens <= SKETCH  # then the inputs themselves are the smaller
    signs = random(SKETCH, layer.shape.width, seed=50).sign() / SKETCH**0.5
    sketch = [x if few else x @ signs.T for x in layer.x]
    return Collected(torch.stack(energies(layer)) / energy, h, sketch)


def cross_norm(sketch: Tensor, merged: Tensor) -> Tensor:
    """||x^T merged||_F, which only sets a small ridge: float32 will do.

    Of few tokens from their own products, of many from a sketch by 64 random signs.
    """
    if sketch.shape == merged.shape:
        return ((sketch @ sketch.T) * (merged @ merged.T)).sum().clamp(min=0).sqrt().double()
    return (sketch.T @ merged).norm().double()


def run_solve(shape: Shape) -> Run:
    """A solve of one layer, as each iteration or sweep has one, and the dense update to compare.

    Its inputs are those of the merged model; what the single models' run left is given.
    """
    layer = make_layer(shape)
    single = collect(layer)

    def run() -> Outputs:
        pairs = zip(single.sketch, layer.merged, strict=True)
        ridge = [ALPHA * cross_norm(*pair) for pair in pairs]
        if 2 * TASKS * shape.tokens <= shape.width:
            z = by_tokens(layer, single.h, single.lam, torch.stack(ridge))
        else:
            z = by_channels(layer, single.h, single.lam, ridge)
        return [torch.cat(layer.b, 1).double() @ z]

    return run


def by_channels(layer: Layer, h: list[Tensor], lam: Tensor, ridge: list[Tensor]) -> Tensor:
    """Z [R, d] from Gram matrices of the inputs."""
    d = layer.shape.width
    grams = torch.zeros(TASKS, d, d, dtype=torch.float64)
    cross = torch.zeros(TASKS, RANK, d, dtype=torch.float64)
    for i in range(TASKS):
        ops.gram_acc_(grams[i], layer.merged[i])
        ops.cross_acc_(cross[i], h[i], layer.merged[i])
    gamma = ALPHA * ops.sym_fro_norm(grams)
    g = ops.gram_combine(grams, lam[None], gamma[None])
    p = [lam[i] * SCALE * (cross[i] + ridge[i] * layer.a[i].double()) for i in range(TASKS)]
    return ops.spd_solve(g, torch.cat(p)[None], inplace_factor=True).z[0]


def by_tokens(layer: Layer, h: list[Tensor], lam: Tensor, ridge: Tensor) -> Tensor:
    """The same from the products of few tokens with each other."""
    merged, root = [x.double() for x in layer.merged], lam.sqrt()
    norms = torch.stack([(x @ x.T).norm() for x in merged])  # as that of x^T x
    gamma = (lam * ALPHA * norms).sum()
    y = torch.cat([r * x for r, x in zip(root, merged, strict=True)])
    q = torch.block_diag(*(r * SCALE * x.double() for r, x in zip(root, h, strict=True)))
    rho = (lam * SCALE * ridge / gamma).repeat_interleave(RANK)
    return ops.dual_solve(y, q, torch.cat(layer.a).double(), rho, gamma).z


def run_authors(shape: Shape) -> Run:
    """The authors' way: see the top of this file."""
    layer = make_layer(shape)
    d = shape.width
    deltas = [SCALE * b @ a for a, b in zip(layer.a, layer.b, strict=True)]

    def run() -> Outputs:
        one = torch.eye(d)
        left, right = torch.zeros(d, d).double(), torch.zeros(d, d).double()
        for x, merged, delta in zip(layer.x, layer.merged, deltas, strict=True):
            whole = layer.base + delta
            lam = whole.norm() ** 2 / (x @ whole.T).norm() ** 2
            gram, cross = merged.T @ merged, x.T @ merged
            gram = gram + ALPHA * gram.norm() * one
            cross = cross + ALPHA * cross.norm() * one
            left += (lam * (delta @ cross)).double()
            right += (lam * gram).double()
        update = torch.linalg.solve(right.T, left.T).T
        narrow = update.float()
        for x, delta in zip(layer.x, deltas, strict=True):
            (x @ narrow.T - x @ delta.T).norm()
        return [update]

    return run


def exact_update(shape: Shape) -> Tensor:
    """The update [d, d] in float64."""
    layer = make_layer(shape)
    d = shape.width
    g, rows = torch.zeros(d, d).double(), []
    for x, merged, a, b in zip(layer.x, layer.merged, layer.a, layer.b, strict=True):
        x, merged, a = x.double(), merged.double(), a.double()
        whole = layer.base.double() + SCALE * b.double() @ a
        lam = whole.square().sum() / (x @ whole.T).square().sum()
        gram = merged.T @ merged
        g += lam * gram
        g.diagonal().add_(lam * ALPHA * gram.norm())
        ridge = ALPHA * (x.T @ merged).norm()
        rows.append(lam * SCALE * ((x @ a.T).T @ merged + ridge * a))
    z = torch.cholesky_solve(torch.cat(rows).T, torch.linalg.cholesky(g)).T
    return torch.cat(layer.b, 1).double() @ z


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
    counts = sorted({row.threads for row in rows if row.threads is not None}) or [1]

    def ratios(stage: str, over: str, share: float = 1.0) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for name in dict.fromkeys(case.input for case in cases() if case.stage == stage):
            for count in counts:
                other = times.get((name, stage, over, count))
                own = times.get((name, stage, OURS, count))
                ratio = None if other is None or own is None else share * other / own
                found[f"{name}, threads: {count}"] = ratio
        return found

    return [
        worst("a whole layer, times faster than the authors' way", ratios(SOLVE, AUTHORS), ">=", 6),
        worst("Gram matrix, rate over the vendor's product", ratios(GRAM, LIMIT), ">=", 0.75),
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
    return run_gram(case.data) if case.stage == GRAM else run_solve(case.data)


@FAMILY.arm(AUTHORS)
def authors(case: Case) -> Run:
    if case.stage == SVD:
        u, v = factors()
        w = (u @ v)[0]
        return lambda: [torch.linalg.svd(w, full_matrices=False)[1][: u.shape[2]]]
    if case.stage == GRAM:
        x = make_layer(case.data).x[0]
        return lambda: [(x.T @ x).tril()]
    return run_authors(case.data)


@FAMILY.arm(LIMIT)
def limit(case: Case) -> Run:
    """The vendor's float64 product of half the Gram matrix, as many operations as it needs."""
    if case.stage != GRAM:
        raise Unavailable("only a Gram matrix has a product as its limit")
    x = make_layer(case.data).x[0].double()
    half = x[:, : x.shape[1] // 2].T
    return lambda: [half @ x]
