"""Streaming Gram matrices and small solves in plain PyTorch, in float64: what the ops mean.

The linear algebra of IterIS, Chen et al. 2025 (arXiv 2411.15231), and of RegMean; written as the
formulas stand, dense where the ops are factored.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyext.interface.solve import (
    FLOAT32_GRAM,
    make_cross_acc_,
    make_dual_solve,
    make_factored_svd,
    make_gram_acc_,
    make_gram_combine,
    make_gram_proj_acc_,
    make_spd_solve,
    make_sumsq_acc_,
    make_sym_fro_norm,
    make_truncate_dense,
)

_EPS = torch.finfo(torch.float64).eps
_CHUNK = 256  # rows whose float32 products are summed by themselves


def _segments(rows: int, seg: Tensor | None) -> Iterator[slice]:
    """The rows of each segment."""
    ends = [0, rows] if seg is None else seg.tolist()
    if ends[0] < 0 or ends[-1] > rows or any(a > b for a, b in zip(ends, ends[1:], strict=False)):
        raise ValueError(f"seg: expected rising offsets within [0, {rows}], got {ends}")
    yield from (slice(a, b) for a, b in zip(ends, ends[1:], strict=False))


def _weights(rows: int, like: Tensor, row_weight: Tensor | None) -> Tensor:
    """[rows, 1] float64."""
    if row_weight is None:
        return torch.ones(rows, 1, dtype=torch.float64, device=like.device)
    weight = row_weight.double()
    if not (weight >= 0).all():
        row = int((~(weight >= 0)).int().argmax())
        raise ValueError(
            f"row_weight: expected no negative weight, got {weight[row].item():g} at row {row}"
        )
    return weight.unsqueeze(1)


def _counted(x: Tensor, weight: Tensor) -> Tensor:
    """The rows [rows, d] in float64, those of weight 0 as zeros."""
    return x.reshape(weight.shape[0], x.shape[-1]).double().where(weight > 0, 0.0)


def _rows(x: Tensor) -> int:
    return x.shape[:-1].numel()


def _product(left: Tensor, right: Tensor, products: torch.dtype) -> Tensor:
    """left^T right, summed in float64 over chunks of which each is summed in `products`."""
    if products == torch.float64:
        return left.T @ right
    chunks = [rows.to(products).split(_CHUNK) for rows in (left, right)]
    sums = left.new_zeros(left.shape[1], right.shape[1])
    for own, other in zip(*chunks, strict=True):
        sums += own.T @ other
    return sums


def solve_gram_acc_(
    gram: Tensor,
    x: Tensor,
    row_weight: Tensor | None,
    seg: Tensor | None,
    products: torch.dtype = torch.float64,
) -> None:
    """See `gram_acc_`."""
    weight = _weights(_rows(x), x, row_weight)
    rows = weight.sqrt() * _counted(x, weight)
    for s, part in enumerate(_segments(_rows(x), seg)):
        gram[s] += _product(rows[part], rows[part], products).tril().to(gram.dtype)


def solve_gram_proj_acc_(
    gram: Tensor,
    x: Tensor,
    a_stack: Tensor,
    row_weight: Tensor | None,
    seg: Tensor | None,
    products: torch.dtype = torch.float64,
) -> Tensor:
    """See `gram_proj_acc_`."""
    solve_gram_acc_(gram, x, row_weight, seg, products)
    h = _counted(x, _weights(_rows(x), x, row_weight)) @ a_stack.double().T
    return h if x.dtype == torch.float64 else h.float()


def solve_cross_acc_(
    cross: Tensor,
    left: Tensor,
    right: Tensor,
    row_weight: Tensor | None,
    seg: Tensor | None,
    products: torch.dtype = torch.float64,
) -> None:
    """See `cross_acc_`."""
    weight = _weights(_rows(right), right, row_weight)
    rows, others = _counted(left, weight), weight * _counted(right, weight)
    for s, part in enumerate(_segments(_rows(right), seg)):
        cross[s] += _product(rows[part], others[part], products).to(cross.dtype)


def solve_sumsq_acc_(
    out: Tensor, y: Tensor, bias: Tensor | None, row_weight: Tensor | None, seg: Tensor | None
) -> None:
    """See `sumsq_acc_`."""
    weight = _weights(_rows(y), y, row_weight)
    centred = y.double() if bias is None else y.double() - bias.double()
    squares = weight * _counted(centred, weight).square()
    for s, part in enumerate(_segments(_rows(y), seg)):
        out[s] += squares[part].sum()


def _symmetric(lower: Tensor) -> Tensor:
    """The whole matrices, in float64."""
    lower = lower.double()
    return lower.tril() + lower.tril(-1).mT


def _check_values(lam: Tensor, gamma: Tensor) -> None:
    for name, values, bad, wanted in (
        ("lam", lam, ~(lam > 0), "positive values"),
        ("gamma", gamma, ~(gamma >= 0), "no negative value"),
    ):
        if bad.any():
            place = bad.nonzero()[0].tolist()
            raise ValueError(f"{name}: expected {wanted}, got {values[tuple(place)]:g} at {place}")


def solve_gram_combine(grams: Tensor, lam: Tensor, gamma: Tensor) -> Tensor:
    """See `gram_combine`."""
    _check_values(lam, gamma)
    diagonal = (lam * gamma).sum(1)[:, None, None]
    one = torch.eye(grams.shape[-1], dtype=torch.float64, device=grams.device)
    sums = torch.einsum("ln,nij->lij", lam, grams.double().tril()) + diagonal * one
    return sums.to(grams.dtype)


def solve_sym_fro_norm(grams: Tensor) -> Tensor:
    """See `sym_fro_norm`."""
    return torch.linalg.matrix_norm(_symmetric(grams))


def _by_eigenvalues(g: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The pseudo-inverse's solution, and the factor of the matrix with raised eigenvalues."""
    values, vectors = torch.linalg.eigh(g)
    floor = _EPS * g.shape[0] * values[-1]
    inverse = torch.where(values > floor, 1 / values, 0.0)
    z = (p @ vectors * inverse) @ vectors.T
    upper = torch.linalg.qr((vectors * values.clamp(min=floor).sqrt()).T, mode="r")[1]
    return z, upper.T * upper.diagonal().sign()


def _solve_one(
    g: Tensor, p: Tensor, on_fail: str, jitter0: float, max_tries: int, name: str
) -> tuple[Tensor, Tensor, int, float, float]:
    """z, the factor, info, jitter and rcond of one matrix."""
    d = g.shape[0]
    if not g.isfinite().all() and on_fail != "nan":
        raise ValueError(f"{name}: expected finite entries, got NaN or infinity")
    one = torch.eye(d, dtype=g.dtype, device=g.device)
    largest = g.diagonal().abs().amax().item() if d else 0.0
    tries = [0.0, *(jitter0 * largest * 100.0**k for k in range(max_tries))]
    pivot = 0
    for rung, jitter in enumerate(tries[:1] if on_fail != "ladder" else tries):
        shifted = g + jitter * one
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if failed.item() == 0:
            inverse = torch.cholesky_inverse(factor)
            norms = [m.abs().sum(0).amax().item() if d else 1.0 for m in (shifted, inverse)]
            z = torch.cholesky_solve(p.T, factor).T
            return z, factor, rung, jitter, 1 / (norms[0] * norms[1])
        pivot = pivot or int(failed.item())
    if on_fail == "raise":
        raise ValueError(f"{name}: not positive definite, pivot {pivot} of {d} failed")
    if on_fail == "nan":
        return p * torch.nan, g * torch.nan, -pivot, 0.0, 0.0
    if torch.linalg.eigvalsh(g)[-1] <= 0:
        raise ValueError(f"{name}: expected a positive eigenvalue, got none")
    z, factor = _by_eigenvalues(g, p)
    return z, factor, max_tries + 1, 0.0, _EPS * d


def solve_spd_solve_(
    g: Tensor, p: Tensor, on_fail: str, jitter0: float, max_tries: int, half: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `spd_solve` with inplace_factor=True."""
    z = torch.empty_like(p)
    s = torch.empty_like(p) if half else p.new_empty(0)
    info = torch.zeros(g.shape[0], dtype=torch.int32, device=g.device)
    numbers = torch.zeros(2, g.shape[0], dtype=torch.float64, device=g.device)
    factors = torch.empty_like(g)
    for i, matrix in enumerate(_symmetric(g)):
        solved = _solve_one(matrix, p[i].double(), on_fail, jitter0, max_tries, f"g[{i}]")
        found, factor, info[i], numbers[0, i], numbers[1, i] = solved
        z[i], factors[i] = found, factor.tril()
        if half:
            s[i] = found @ factor
    g.copy_(factors)
    info += FLOAT32_GRAM if g.dtype == torch.float32 else 0
    return z, s, info, numbers[0], numbers[1]


def solve_spd_solve(
    g: Tensor, p: Tensor, on_fail: str, jitter0: float, max_tries: int, half: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `spd_solve`."""
    return solve_spd_solve_(g.clone(), p, on_fail, jitter0, max_tries, half)


def solve_dual_solve(
    y: Tensor, q: Tensor, a: Tensor, rho: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    """See `dual_solve`."""
    if not gamma >= 0:
        raise ValueError(f"gamma: expected no negative value, got {gamma.item():g}")
    w, rhs = y.double(), torch.cat((q.double().T, a.double() @ y.double().T))
    kernel = w @ w.T + gamma.double() * torch.eye(y.shape[0], dtype=w.dtype, device=w.device)
    found = solve_spd_solve(kernel[None], rhs[None], "ladder", 1e-14, 3, False)
    first, second = found[0][0].chunk(2)
    z = first @ w + rho.double()[:, None] * (a.double() - second @ w)
    return z.to(y.dtype), found[2][0]


def _positive(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Signs of pairs of vectors such that the largest entry of the left one is positive."""
    largest = left.gather(-2, left.abs().argmax(-2, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(left.dtype)
    return left * sign, right * sign.mT


def _padded(values: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, size - values.shape[-1]))


def solve_factored_svd(
    u: Tensor, v: Tensor, rank: int, chol: Tensor | None, energy: float, balance: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `factored_svd`; by the SVD of the whole product."""
    left, values, right = torch.linalg.svd(u.double() @ v.double(), full_matrices=False)
    left, right = _positive(left, right)
    sv = _padded(values, max(u.shape[2], values.shape[1]))[:, : u.shape[2]]
    squares = sv.square()
    total = squares.sum(-1, keepdim=True)
    if energy > 0:
        before = squares.cumsum(-1) - squares
        kept = (before < energy * total).sum(-1).clamp(max=rank)
    else:
        kept = torch.full((u.shape[0],), rank, device=u.device)
    inside = torch.arange(u.shape[2], device=u.device) < kept[:, None]
    cut = torch.where(inside, 0.0, squares).sum(-1)
    err = torch.where(total[:, 0] > 0, (cut / total[:, 0]).sqrt(), 0.0)
    b = _padded(left, max(rank, left.shape[-1]))[..., :rank]
    a = _padded(right.mT, max(rank, right.shape[-2]))[..., :rank].mT
    used = torch.where(inside, sv, 0.0)[:, :rank]
    shares = (used.sqrt(), used.sqrt()) if balance else (used, inside[:, :rank].double())
    b, a = b * shares[0][:, None], a * shares[1][..., None]
    if chol is not None:
        a = torch.linalg.solve_triangular(chol.double().tril(), a, upper=False, left=False)
    out = (b, a, sv, kept.int(), err)
    return tuple(x if x.dtype == torch.int32 else x.to(u.dtype) for x in out)  # type: ignore[return-value]


def solve_truncate_dense(
    w: Tensor,
    rank: int,
    method: str,
    oversample: int,
    n_iter: int,
    chol: Tensor | None,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `truncate_dense`; always by the SVD of w, which "rsvd" approximates."""
    weighed = w.double() if chol is None else w.double() @ chol.double().tril()
    left, values, right = torch.linalg.svd(weighed, full_matrices=False)
    left, right = _positive(left[..., :rank], right[..., :rank, :])
    root = values[..., :rank].sqrt()
    b, a = left * root.unsqueeze(-2), right * root.unsqueeze(-1)
    if chol is not None:
        a = torch.linalg.solve_triangular(chol.double().tril(), a, upper=False, left=False)
    total = values.square().sum(-1)
    cut = values[..., rank:].square().sum(-1)
    err = torch.where(total > 0, (cut / total).sqrt(), 0.0)
    return tuple(x.to(w.dtype) for x in (b, a, values[..., :rank], err))  # type: ignore[return-value]


gram_acc_ = make_gram_acc_(solve_gram_acc_)
gram_proj_acc_ = make_gram_proj_acc_(solve_gram_proj_acc_)
cross_acc_ = make_cross_acc_(solve_cross_acc_)
sumsq_acc_ = make_sumsq_acc_(solve_sumsq_acc_)
gram_combine = make_gram_combine(solve_gram_combine)
sym_fro_norm = make_sym_fro_norm(solve_sym_fro_norm)
spd_solve = make_spd_solve(solve_spd_solve, solve_spd_solve_)
dual_solve = make_dual_solve(solve_dual_solve)
factored_svd = make_factored_svd(solve_factored_svd)
truncate_dense = make_truncate_dense(solve_truncate_dense)
