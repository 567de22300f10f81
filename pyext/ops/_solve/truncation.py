"""`solve_factored_svd` and `solve_truncate_dense`: chains of torch's QR and SVD, for any device.

On the CPU they run on one thread: the vendor's decompositions and products give other bits on
another number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyext.runtime import use_threads

Results = TypeVar("Results")

_library = torch.library.Library("pyext", "FRAGMENT")
_library.define(
    "solve_factored_svd(Tensor u, Tensor v, int rank, Tensor? chol=None, float energy=0.0, "
    "bool balance=True) -> (Tensor b, Tensor a, Tensor sv, Tensor kept, Tensor err)"
)
_library.define(
    "solve_truncate_dense(Tensor w, int rank, str method, int oversample=8, int n_iter=2, "
    "Tensor? chol=None, int seed=0) -> (Tensor b, Tensor a, Tensor sv, Tensor err)"
)


def _on_one_thread(function: Callable[..., Results]) -> Callable[..., Results]:
    @wraps(function)
    def alone(matrix: Tensor, *rest: Any, **options: Any) -> Results:
        if matrix.device.type != "cpu":
            return function(matrix, *rest, **options)
        with use_threads(1):
            return function(matrix, *rest, **options)

    return alone


def _signs(left: Tensor) -> Tensor:
    """[..., 1, k]: what makes the entry of largest magnitude of each column positive."""
    largest = left.gather(-2, left.abs().argmax(-2, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(left.dtype)


def _unweighed(a: Tensor, chol: Tensor | None) -> Tensor:
    """a C^-1 for the lower factor C."""
    if chol is None:
        return a
    return torch.linalg.solve_triangular(chol, a, upper=False, left=False)


def _share(cut: Tensor, total: Tensor) -> Tensor:
    """The root of a share, zero of nothing."""
    return torch.where(total > 0, (cut.clamp(min=0) / total).sqrt(), 0.0).to(cut.dtype)


def _kept(squares: Tensor, rank: int, energy: float) -> Tensor:
    """[L]: the smallest rank that reaches the share `energy` of all squares, at most `rank`."""
    if energy == 0:
        return torch.full(squares.shape[:1], rank, device=squares.device)
    before = squares.cumsum(-1) - squares
    return (before < energy * squares.sum(-1, keepdim=True)).sum(-1).clamp(max=rank)


@_on_one_thread
def _factored_svd(
    u: Tensor,
    v: Tensor,
    rank: int,
    chol: Tensor | None = None,
    energy: float = 0.0,
    balance: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    count, outputs, inner = u.shape
    inputs = v.shape[2]
    left, left_core = torch.linalg.qr(u)
    right, right_core = torch.linalg.qr(v.mT)
    core = torch.linalg.svd(left_core @ right_core.mT, full_matrices=False)
    width = core[1].shape[1]
    sv = u.new_zeros((count, inner))
    sv[:, :width] = core[1]
    squares = sv.square()
    kept = _kept(squares, rank, energy)
    inside = torch.arange(inner, device=u.device) < kept.unsqueeze(1)
    err = _share(torch.where(inside, 0.0, squares).sum(-1), squares.sum(-1))
    used = min(rank, width)
    first = left @ core[0][..., :used]
    signs = _signs(first) if outputs else first.new_ones((count, 1, used))
    scale = torch.where(inside, sv, 0.0)[:, :used]
    root = scale.sqrt() if balance else inside[:, :used].to(u.dtype)
    b, a = u.new_zeros((count, outputs, rank)), u.new_zeros((count, rank, inputs))
    b[..., :used] = first * signs * (scale.sqrt() if balance else scale).unsqueeze(1)
    second = (core[2][:, :used] * signs.mT * root.unsqueeze(2)) @ right.mT
    a[:, :used] = _unweighed(second, chol)
    return b, a, sv, kept.int(), err


_library.impl("solve_factored_svd", _factored_svd, "CompositeExplicitAutograd")


@torch.library.register_fake("pyext::solve_factored_svd")
def _(u, v, rank, chol=None, energy=0.0, balance=True):  # type: ignore[no-untyped-def]
    count, outputs, inner = u.shape
    b, a = u.new_empty((count, outputs, rank)), u.new_empty((count, rank, v.shape[2]))
    kept = u.new_empty((count,), dtype=torch.int32)
    return b, a, u.new_empty((count, inner)), kept, u.new_empty((count,))


def _range(w: Tensor, width: int, n_iter: int, seed: int) -> Tensor:
    """An orthonormal basis [..., o, width] of nearly all that w does to random vectors."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(w.shape[-1], width, generator=generator, dtype=w.dtype).to(w.device)
    basis: Tensor = torch.linalg.qr(w @ start)[0]
    for _ in range(n_iter):
        basis = torch.linalg.qr(w.mT @ basis)[0]
        basis = torch.linalg.qr(w @ basis)[0]
    return basis


@_on_one_thread
def _truncate_dense(
    w: Tensor,
    rank: int,
    method: str,
    oversample: int = 8,
    n_iter: int = 2,
    chol: Tensor | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weighed = w if chol is None else w @ chol
    if method == "exact":
        left, values, right = torch.linalg.svd(weighed, full_matrices=False)
    else:
        basis = _range(weighed, min(rank + oversample, *w.shape[-2:]), n_iter, seed)
        inner, values, right = torch.linalg.svd(basis.mT @ weighed, full_matrices=False)
        left = basis @ inner
    left, values, right = left[..., :rank], values[..., :rank], right[..., :rank, :]
    signs = _signs(left)
    root = values.sqrt()
    b, a = left * signs * root.unsqueeze(-2), right * signs.mT * root.unsqueeze(-1)
    # Of the difference itself: that of two nearly equal sums of squares would be rounding.
    cut = (weighed - b @ a).square().sum((-2, -1))
    err = _share(cut, weighed.square().sum((-2, -1)))
    a = _unweighed(a, chol)
    return b.contiguous(), a.contiguous(), values.contiguous(), err


_library.impl("solve_truncate_dense", _truncate_dense, "CompositeExplicitAutograd")


@torch.library.register_fake("pyext::solve_truncate_dense")
def _(w, rank, method, oversample=8, n_iter=2, chol=None, seed=0):  # type: ignore[no-untyped-def]
    lead = w.shape[:-2]
    b, a = w.new_empty((*lead, w.shape[-2], rank)), w.new_empty((*lead, rank, w.shape[-1]))
    return b, a, w.new_empty((*lead, rank)), w.new_empty(lead)
