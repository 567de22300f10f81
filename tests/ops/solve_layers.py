"""A layer to merge: inputs of N tasks, their adapters, and the solution by dense algebra."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from tests.ops.side_agreement import random


@dataclass
class Layer:
    """What IterIS knows of one layer when it solves it, in float64."""

    alpha: float
    x: list[Tensor]  # [M_i, d] of the single-task models
    merged: list[Tensor]  # [M_i, d] of the merged model
    a: list[Tensor]  # [r, d]
    b: list[Tensor]  # [o, r]
    lam: list[float]
    scale: float = 2.0


def layer(alpha: float, rows=(90, 70, 110), d=48, o=40, r=4) -> Layer:
    """Inputs with channels of very different size, such as a language model has."""
    loud = torch.logspace(0, -3, d, dtype=torch.float64)
    x = [random(m, d, seed=i) * loud for i, m in enumerate(rows)]
    merged = [xi + 0.1 * random(*xi.shape, seed=50 + i) * loud for i, xi in enumerate(x)]
    a = [random(r, d, seed=10 + i) for i in range(len(rows))]
    b = [random(o, r, seed=20 + i) for i in range(len(rows))]
    return Layer(alpha, x, merged, a, b, [1.0, 0.3, 2.0][: len(rows)])


def dense_update(case: Layer) -> Tensor:
    """[o, d] by the authors' equations, with LU (arXiv 2411.15231)."""
    d = case.x[0].shape[1]
    one = torch.eye(d, dtype=torch.float64)
    left = torch.zeros(case.b[0].shape[0], d, dtype=torch.float64)
    right = torch.zeros(d, d, dtype=torch.float64)
    for x, merged, a, b, lam in zip(case.x, case.merged, case.a, case.b, case.lam, strict=True):
        gram, cross = merged.T @ merged, x.T @ merged
        left += lam * case.scale * b @ a @ (cross + case.alpha * cross.norm() * one)
        right += lam * (gram + case.alpha * gram.norm() * one)
    return torch.linalg.solve(right, left, left=False)


def _sums(case: Layer, solve: ModuleType) -> tuple[Tensor, Tensor, list[float]]:
    """Gram matrices [N, d, d], their gammas, and the gammas of the cross-Grams."""
    d = case.x[0].shape[1]
    seg = torch.tensor([0, *(m.shape[0] for m in case.merged)]).cumsum(0)
    grams = torch.zeros(len(case.x), d, d, dtype=torch.float64)
    solve.gram_acc_(grams, torch.cat(case.merged), seg=seg)
    gamma = case.alpha * solve.sym_fro_norm(grams)
    cross = torch.zeros_like(grams)
    solve.cross_acc_(cross, torch.cat(case.x), torch.cat(case.merged), seg=seg)
    return grams, gamma, [case.alpha * c.norm().item() for c in cross]


def projections(case: Layer, solve: ModuleType) -> list[Tensor]:
    """H_i = X_i A_i^T [M_i, r]."""
    d = case.x[0].shape[1]
    unused = torch.zeros(d, d, dtype=torch.float64)
    return [solve.gram_proj_acc_(unused, x, a) for x, a in zip(case.x, case.a, strict=True)]


def factored_update(case: Layer, solve: ModuleType) -> Tensor:
    """The same through the ops: Gram matrices, projections, Cholesky with R right-hand sides."""
    grams, gamma, cross_gamma = _sums(case, solve)
    lam = torch.tensor([case.lam], dtype=torch.float64)
    g = solve.gram_combine(grams, lam, gamma[None])
    rows = []
    for i, h in enumerate(projections(case, solve)):
        p = torch.zeros(case.a[i].shape, dtype=torch.float64)
        solve.cross_acc_(p, h, case.merged[i])
        rows.append(case.lam[i] * case.scale * (p + cross_gamma[i] * case.a[i]))
    solved = solve.spd_solve(g, torch.cat(rows)[None])
    assert solved.info.tolist() == [0]
    return torch.cat(case.b, 1) @ solved.z[0]


def dual_update(case: Layer, solve: ModuleType) -> Tensor:
    """The same through the Gram matrix of the tokens."""
    _, gamma, cross_gamma = _sums(case, solve)
    lam = torch.tensor(case.lam, dtype=torch.float64)
    whole = (lam * gamma).sum()
    y = torch.cat([li**0.5 * m for li, m in zip(case.lam, case.merged, strict=True)])
    h = projections(case, solve)
    q = torch.block_diag(*(li**0.5 * case.scale * hi for li, hi in zip(case.lam, h, strict=True)))
    r = case.a[0].shape[0]
    rho = lam * case.scale * torch.tensor(cross_gamma, dtype=torch.float64) / whole
    z, info = solve.dual_solve(y, q, torch.cat(case.a), rho.repeat_interleave(r), whole)
    assert info.item() == 0
    return torch.cat(case.b, 1) @ z


def relative(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def spd(d: int, condition: float, seed: int = 0) -> Tensor:
    """A symmetric positive definite matrix [d, d] of this condition number."""
    vectors = torch.linalg.qr(random(d, d, seed=seed))[0]
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), d, dtype=torch.float64)
    whole = (vectors * values) @ vectors.T
    return (whole + whole.T) / 2
