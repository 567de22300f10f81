"""Two ways to the merged update of a layer: ours, and that of IterIS's authors.

Theirs, rewritten from the equations: the activations of every task are kept, their Gram and
cross-Gram matrices are made and regularised in float32, only their weighted sums are float64, LU
solves for as many right-hand sides as the layer has outputs, and outputs of all tokens are made for
a residual that nothing uses. Ours sums Gram matrices in float64, of the inputs' channels or, where
they are few, of their tokens, and solves for as many right-hand sides as the adapters have ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from benchmarks.harness import Outputs, Run
from benchmarks.solve_layers import ALPHA, RANK, SCALE, TASKS, Layer, Shape, make_layer, random
from pyext.ops import solve as ops

SKETCH = 64  # columns that stand for an input where only a norm is wanted


@dataclass(frozen=True)
class Collected:
    """What the single models' run leaves, once: no later solve touches their inputs again."""

    lam: Tensor  # [N], weights of the tasks
    projected: list[Tensor]  # [M, r] each, inputs on the adapters; of many tokens, on signs, too
    tokens: list[Tensor]  # [M, M], products of tokens with each other; of few tokens


def signs(shape: Shape) -> Tensor:
    return random(SKETCH, shape.width, seed=50).sign() / SKETCH**0.5


def energies(layer: Layer) -> list[Tensor]:
    """||W||_F^2 of the tasks' whole weights."""
    return [
        (layer.base + SCALE * b @ a).double().square().sum()
        for a, b in zip(layer.a, layer.b, strict=True)
    ]


@cache
def collect(shape: Shape) -> Collected:
    layer = make_layer(shape)
    outputs = [
        x @ layer.base.T + SCALE * (x @ a.T) @ b.T
        for x, a, b in zip(layer.x, layer.a, layer.b, strict=True)
    ]
    energy = torch.zeros(TASKS, dtype=torch.float64)
    for i, y in enumerate(outputs):
        ops.sumsq_acc_(energy[i : i + 1], y)
    lam = torch.stack(energies(layer)) / energy
    if shape.few:
        projected = [x @ a.T for x, a in zip(layer.x, layer.a, strict=True)]
        return Collected(lam, projected, [x @ x.T for x in layer.x])
    stacks = [torch.cat((a, signs(shape))) for a in layer.a]
    return Collected(lam, [x @ stack.T for x, stack in zip(layer.x, stacks, strict=True)], [])


def run_ours(shape: Shape, products: torch.dtype) -> Run:
    """A solve of one layer, as each iteration or sweep has one, and the dense update to compare.

    Its inputs are those of the merged model; what the single models' run left is given.
    """
    layer = make_layer(shape)
    single = collect(shape)
    solve = by_tokens if shape.few else by_channels
    return lambda: [torch.cat(layer.b, 1).double() @ solve(layer, single, products)]


def by_channels(layer: Layer, single: Collected, products: torch.dtype) -> Tensor:
    """Z [R, d] from Gram matrices of the inputs.

    The norm of a cross-Gram matrix, which only sets a small ridge, is estimated from its product
    with signs, by what the same signs make of the Gram matrix, whose norm is known.
    """
    d, lam = layer.shape.width, single.lam
    grams = torch.zeros(TASKS, d, d, dtype=torch.float64)
    cross = torch.zeros(TASKS, RANK + SKETCH, d, dtype=torch.float64)
    for i, merged in enumerate(layer.merged):
        ops.gram_acc_(grams[i], merged, products=products)
        ops.cross_acc_(cross[i], single.projected[i], merged, products=products)
    ridge = ALPHA * ops.sym_fro_norm(grams)
    g = ops.gram_combine(grams, lam[None], ridge[None])
    sketch, lower = signs(layer.shape), grams.float()
    by_signs = sketch @ lower + sketch @ lower.mT - sketch * lower.diagonal(dim1=1, dim2=2)[:, None]
    pull = ridge * cross[:, RANK:].flatten(1).norm(dim=1) / by_signs.flatten(1).norm(dim=1)
    p = [lam[i] * SCALE * (cross[i, :RANK] + pull[i] * a.double()) for i, a in enumerate(layer.a)]
    return ops.spd_solve(g, torch.cat(p)[None], inplace_factor=True).z[0]


def by_tokens(layer: Layer, single: Collected, products: torch.dtype) -> Tensor:
    """The same from the products of few tokens with each other, which have both norms, too."""
    m, lam, root = layer.shape.tokens, single.lam, single.lam.sqrt()
    tokens = torch.zeros(TASKS, m, m, dtype=torch.float64)
    for i, merged in enumerate(layer.merged):
        ops.gram_acc_(tokens[i], merged.T.contiguous(), products=products)
    ridge = (lam * ALPHA * ops.sym_fro_norm(tokens)).sum()
    inner = torch.stack(single.tokens) * (tokens + tokens.tril(-1).mT)
    pull = lam * SCALE * ALPHA * inner.sum((1, 2)).clamp(min=0).sqrt()
    y = torch.cat([r * x for r, x in zip(root, layer.merged, strict=True)]).double()
    q = torch.block_diag(*(r * SCALE * h for r, h in zip(root, single.projected, strict=True)))
    rho = (pull / ridge).repeat_interleave(RANK)
    return ops.dual_solve(y, q.double(), torch.cat(layer.a).double(), rho, ridge).z


def run_authors(shape: Shape) -> Run:
    """The authors' way: see the top of this file."""
    layer = make_layer(shape)
    o, d = layer.base.shape
    deltas = [SCALE * b @ a for a, b in zip(layer.a, layer.b, strict=True)]

    def run() -> Outputs:
        one = torch.eye(d)
        left, right = torch.zeros(o, d).double(), torch.zeros(d, d).double()
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
