"""Layers whose adapters are merged by least squares, and the merged update in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

TASKS, RANK, ALPHA, SCALE = 2, 8, 1e-4, 4.0


@dataclass(frozen=True)
class Shape:
    """Of a layer: tokens of each task, inputs, and outputs where they are not as many."""

    name: str
    tokens: int
    width: int
    outputs: int = 0

    def __str__(self) -> str:
        to = f" to {self.outputs}" if self.outputs else ""
        return f"{self.name}, {TASKS} x {self.tokens} tokens, {self.width}{to} wide"

    @property
    def few(self) -> bool:
        """Whether products of tokens with each other are the smaller matrix by far."""
        return 2 * TASKS * self.tokens <= self.width


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Layer:
    """What is known of a layer: inputs of the single models and of the merged one, and adapters."""

    shape: Shape
    x: list[Tensor] = field(repr=False)  # [M, d] each
    merged: list[Tensor] = field(repr=False)
    a: list[Tensor] = field(repr=False)  # [r, d]
    b: list[Tensor] = field(repr=False)  # [o, r]
    base: Tensor = field(repr=False)  # [o, d]


@cache
def make_layer(shape: Shape) -> Layer:
    rows, d = shape.tokens, shape.width
    o = shape.outputs or d
    loud = torch.logspace(0, -1, d)  # channels differ in size
    x = [random(rows, d, seed=i) * loud for i in range(TASKS)]
    merged = [xi + 0.1 * random(rows, d, seed=10 + i) * loud for i, xi in enumerate(x)]
    a = [random(RANK, d, seed=20 + i) / d**0.5 for i in range(TASKS)]
    b = [random(o, RANK, seed=30 + i) / RANK**0.5 for i in range(TASKS)]
    return Layer(shape, x, merged, a, b, random(o, d, seed=40) / d**0.5)


def exact_update(shape: Shape) -> Tensor:
    """The update [o, d] in float64, as the formulas stand; of few tokens by Woodbury's."""
    layer = make_layer(shape)
    known, right, ridge = [], [], torch.zeros(()).double()
    for x, merged, a, b in zip(layer.x, layer.merged, layer.a, layer.b, strict=True):
        x, merged, a = x.double(), merged.double(), a.double()
        whole = layer.base.double() + SCALE * b.double() @ a
        lam = whole.square().sum() / (x @ whole.T).square().sum()
        known.append(lam.sqrt() * merged)
        ridge += lam * ALPHA * _norm(merged, merged)
        right.append(lam * SCALE * ((x @ a.T).T @ merged + ALPHA * _norm(x, merged) * a))
    y, p = torch.cat(known), torch.cat(right)
    if shape.few:
        tokens = _raised(y @ y.T, ridge)
        z = (p - torch.cholesky_solve(y @ p.T, torch.linalg.cholesky(tokens)).T @ y) / ridge
    else:
        z = torch.cholesky_solve(p.T, torch.linalg.cholesky(_raised(y.T @ y, ridge))).T
    return torch.cat(layer.b, 1).double() @ z


def _norm(x: Tensor, y: Tensor) -> Tensor:
    """||x^T y||_F through the smaller of two pairs of products."""
    if x.shape[0] < x.shape[1]:
        tokens = x @ x.T
        return (tokens * (tokens if y is x else y @ y.T)).sum().clamp(min=0).sqrt()
    return (x.T @ y).norm()


def _raised(matrix: Tensor, by: Tensor) -> Tensor:
    matrix.diagonal().add_(by)
    return matrix
