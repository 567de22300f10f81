"""Low-rank ops at the sizes of PathWeave and MRT, against the ways in use.

A mixture of adapters is held against the slower of two limits, both measured in turn with it: the
copy of as many bytes as it has to read and write, and its matrix products by themselves, stacked,
through torch and into memory that is there. The usual way is the dispatcher of the authors' code,
rewritten from its description; plain torch is the same in stacked products.

Edits of rows: the usual way is that of MRT's authors, sample by sample, with a decomposition for
each editor and sample and a whole new tensor; plain torch gathers, edits and scatters into a copy.
What edits add to a forward is their own time over that of the layers.

An orthonormal basis: the usual way is the parametrisation of torch that the ReFT library uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.claims import quotient, worst
from benchmarks.harness import Case, Family, Outputs, Row, Run, Unavailable
from benchmarks.lowrank_shapes import (
    AUDIO,
    DEPTH,
    Bases,
    Fresh,
    Layers,
    Mix,
    MixTensors,
    Rows,
    copied,
    dtype_name,
    llama_layer,
    make_editors,
    make_mix,
    orthonormal,
    random,
)
from benchmarks.lowrank_ways import (
    batched_qr,
    concatenated,
    dispatched,
    gathered,
    sample_by_sample,
)
from pyext.ops import lowrank as ops
from pyext.reference import lowrank as reference
from pyext.report import Claim

FORWARD, BOTH = "mix, forward", "mix, forward + backward"
EDIT, BASIS, OVERHEAD = "edit of rows", "orthonormalize", "edits beside a forward"
OURS, INPLACE = "pyext", "pyext, in place"
USUAL, PLAIN = "usual way", "plain torch"
COPY, PRODUCTS, FORWARD_OF_LAYERS = "copy", "matrix products", "the layers"
CALLS = 2  # of the parametrisation, which takes a quarter of a second, in place of one an editor
USUAL_BASIS = f"parametrisation, {CALLS} calls"
DTYPES = (torch.float32, torch.bfloat16)
THREADS = (1, 2)  # that the claims are about
MIXES = (AUDIO, DEPTH)
ROWS, BASES, LAYERS = Rows(), Bases(), Layers()
# Sums of a few thousand products in float32; what is stored in bfloat16 in between.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class MixProblem:
    shape: Mix
    dtype: torch.dtype
    both: bool

    @property
    def tensors(self) -> MixTensors:
        return make_mix(self.shape, self.dtype, self.dtype, self.both)


@dataclass(frozen=True)
class EditProblem:
    shape: Rows
    dtype: torch.dtype

    @property
    def h(self) -> Tensor:
        sizes = (self.shape.samples, self.shape.tokens, self.shape.width)
        return random(*sizes, seed=30, dtype=self.dtype)


def named(shape: Mix | Rows, dtype: torch.dtype) -> str:
    return f"{shape}, {dtype_name(dtype)}"


def cases() -> Iterator[Case]:
    for shape, dtype, both in product(MIXES, DTYPES, (False, True)):
        yield Case(
            named(shape, dtype),
            BOTH if both else FORWARD,
            shape.work(dtype, both),
            MixProblem(shape, dtype, both),
            TOLERANCES[dtype],
        )
    for dtype in DTYPES:
        problem = EditProblem(ROWS, dtype)
        yield Case(named(ROWS, dtype), EDIT, ROWS.work(dtype), problem, TOLERANCES[dtype])
    yield Case(str(BASES), BASIS, BASES.work, BASES)
    yield Case(str(LAYERS), OVERHEAD, LAYERS.work, LAYERS)


# The reference


def expected(case: Case) -> Outputs:
    data = case.data
    if isinstance(data, MixProblem):
        return mix_run(reference, make_mix(data.shape, data.dtype, torch.float32, data.both))()
    if isinstance(data, EditProblem):
        # From what is stored, in float32 throughout.
        shape = data.shape
        e = make_editors(2, shape.rank, shape.width, data.dtype)
        rows, group = shape.places()
        W, R, b = (t.float() for t in (e.W, e.R, e.b))
        return [reference.rows(data.h.float(), W, R, b, rows=rows, group=group, form="mrt")]
    if isinstance(data, Bases):
        return [basis(data)]
    return edit_run(reference, hidden_of(data), data.rows, inplace=False)()


def arguments(t: MixTensors) -> dict[str, Any]:
    return {
        **{name: getattr(t, name) for name in ("a", "c", "M", "m", "scale", "gate")},
        "has_inner": t.old,
        "frozen": t.old,
    }


def both_ways(t: MixTensors, y: Tensor) -> Outputs:
    """y, or the gradients where any are wanted."""
    if not y.requires_grad:
        return [y]
    return torch.autograd.grad(y, t.leaves, t.upstream)


def mix_run(functions: ModuleType, t: MixTensors, inplace: bool = False) -> Run:
    options = arguments(t)
    fresh = Fresh(t.base)

    def run() -> Outputs:
        base = fresh() if inplace else t.base
        return both_ways(t, functions.mix(t.x, t.A, t.B, base, **options, inplace=inplace))

    return run


def edit_run(functions: ModuleType, hidden: Sequence[Tensor], shape: Rows, inplace: bool) -> Run:
    """Edits of hidden states, each by editors of its own."""
    rows, group = shape.places()
    options = {"rows": rows, "group": group, "form": "mrt", "inplace": inplace}
    own = [make_editors(2, shape.rank, shape.width, h.dtype) for h in hidden]
    fresh = [Fresh(h) for h in hidden]

    def run() -> Outputs:
        taken = [take() for take in fresh] if inplace else hidden
        return [
            functions.rows(h, e.W, e.R, e.b, **options) for h, e in zip(taken, own, strict=True)
        ]

    return run


def basis(shape: Bases) -> Tensor:
    """One orthonormal basis for all: the parametrisation takes long to set up."""
    return orthonormal(1, shape.rank, shape.width).expand(shape.editors, -1, -1).contiguous()


def hidden_of(shape: Layers) -> list[Tensor]:
    return [random(1, shape.tokens, shape.width, seed=40 + i) for i in range(shape.count)]


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The claims, each on the worst of all it is about; what was not measured stays open."""
    times = {(r.input, r.stage, r.arm, r.threads): r.timing.median for r in rows if r.timing}
    mixes = [named(shape, dtype) for shape, dtype in product(MIXES, DTYPES)]
    edits = [named(ROWS, dtype) for dtype in DTYPES]

    def ratios(
        inputs: Sequence[str], stages: Sequence[str], over: Sequence[str], under: str
    ) -> dict[str, float | None]:
        """The slowest of some arms' times over another's."""
        found: dict[str, float | None] = {}
        for name, stage, threads in product(inputs, stages, THREADS):
            known = [times.get((name, stage, arm, threads)) for arm in over]
            slowest = None if None in known else max(x for x in known if x is not None)
            own = times.get((name, stage, under, threads))
            found[f"{name}, {stage}, threads: {threads}"] = quotient(slowest, own)
        return found

    limits, passes = (COPY, PRODUCTS), (FORWARD, BOTH)
    calls = {
        where: None if ratio is None else ratio * BASES.editors / CALLS
        for where, ratio in ratios([str(BASES)], [BASIS], [USUAL_BASIS], OURS).items()
    }
    beside = ratios([str(LAYERS)], [OVERHEAD], [INPLACE], FORWARD_OF_LAYERS)
    faster = "times faster than"
    return [
        worst("mix, share of the slower limit", ratios(mixes, passes, limits, INPLACE), ">=", 0.8),
        worst(f"mix, {faster} a dispatcher", ratios(mixes, passes, [USUAL], INPLACE), ">=", 8),
        worst(f"mix, {faster} stacked products", ratios(mixes, passes, [PLAIN], INPLACE), ">=", 2),
        worst(
            f"rows, {faster} sample by sample", ratios(edits, [EDIT], [USUAL], INPLACE), ">=", 20
        ),
        worst(
            f"rows, {faster} gather and scatter", ratios(edits, [EDIT], [PLAIN], INPLACE), ">=", 4
        ),
        worst(f"orthonormalize, {faster} {BASES.editors} calls (timed: {CALLS})", calls, ">=", 50),
        worst("edits of 12 rows, over the layers' forward", beside, "<=", 0.02),
    ]


FAMILY = Family(
    name="lowrank",
    baseline=USUAL,
    seconds=180,
    tolerance=1e-4,
    cases=cases,
    expected=expected,
    claims=claims,
    limit=(COPY, PRODUCTS, FORWARD_OF_LAYERS),
)


# Ours


@FAMILY.arm(OURS)
def ours(case: Case) -> Run:
    return ours_run(case, inplace=False)


@FAMILY.arm(INPLACE)
def in_place(case: Case) -> Run:
    if isinstance(case.data, Bases):
        raise Unavailable("makes new bases")
    return ours_run(case, inplace=True)


def ours_run(case: Case, inplace: bool) -> Run:
    data = case.data
    if isinstance(data, MixProblem):
        return mix_run(ops, data.tensors, inplace)
    if isinstance(data, EditProblem):
        return edit_run(ops, [data.h], data.shape, inplace)
    if isinstance(data, Layers):
        return edit_run(ops, hidden_of(data), data.rows, inplace)
    X = basis(data)
    return lambda: [ops.orthonormalize(X).R]


# The usual ways


@FAMILY.arm(USUAL)
def usual(case: Case) -> Run:
    data = case.data
    if isinstance(data, MixProblem):
        t = data.tensors
        return lambda: both_ways(t, dispatched(t))
    if isinstance(data, EditProblem):
        return sample_by_sample(data.h, data.shape)
    raise Unavailable("has an arm of its own" if isinstance(data, Bases) else "is the edit of rows")


@FAMILY.arm(USUAL_BASIS)
def parametrised(case: Case) -> Run:
    """`torch.nn.utils.parametrizations.orthogonal`: the weight is made again when it is read."""
    data = case.data
    if not isinstance(data, Bases):
        raise Unavailable("only makes bases")
    module = torch.nn.Linear(data.width, data.rank, bias=False)
    with torch.no_grad():
        module.weight.copy_(basis(data)[0])
    module.weight = torch.nn.Parameter(module.weight.T.contiguous())  # [D, r], as ReFT's
    torch.nn.utils.parametrizations.orthogonal(module)

    def run() -> Outputs:
        made = [module.weight.detach().T for _ in range(CALLS)]
        return [made[-1].expand(data.editors, -1, -1)]

    return run


# Plain torch


@FAMILY.arm(PLAIN)
def plain(case: Case) -> Run:
    data = case.data
    if isinstance(data, MixProblem):
        t = data.tensors
        return lambda: both_ways(t, concatenated(t))
    if isinstance(data, EditProblem):
        return gathered(data.h, data.shape)
    if isinstance(data, Bases):
        X = basis(data)
        return lambda: [batched_qr(X)]
    raise Unavailable("is the edit of rows")


# The limits


@FAMILY.arm(COPY)
def copy(case: Case) -> Run:
    if not isinstance(case.data, MixProblem):
        raise Unavailable("of mixtures alone")
    source, target = copied(case.work)
    return lambda: [target.copy_(source)]


@FAMILY.arm(PRODUCTS)
def products(case: Case) -> Run:
    data = case.data
    if not isinstance(data, MixProblem):
        raise Unavailable("of mixtures alone")
    t = make_mix(data.shape, data.dtype, data.dtype, both=False)
    A, B, last = t.A.flatten(0, 1), t.B.flatten(0, 1), slice(-data.shape.rank, None)
    u, y, dx = t.x @ A.T, torch.empty_like(t.base), torch.empty_like(t.x)

    def run() -> Outputs:
        torch.mm(t.x, A.T, out=u)
        torch.mm(u, B, out=y)
        if not data.both:
            return [y]
        du = t.upstream @ B.T
        torch.mm(du, A, out=dx)
        return [dx, u.T[last] @ t.upstream, du.T[last] @ t.x]

    return run


@FAMILY.arm(FORWARD_OF_LAYERS)
def layers(case: Case) -> Run:
    data = case.data
    if not isinstance(data, Layers):
        raise Unavailable("of edits beside them alone")
    weights = weights_of(data)
    start = hidden_of(data)[0]

    def run() -> Outputs:
        h = start
        for own in weights:
            h = llama_layer(h, own, data.heads)
        return [h]

    return run


@cache
def weights_of(shape: Layers) -> list[dict[str, Tensor]]:
    return list(shape.weights())
