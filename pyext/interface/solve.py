"""Streaming Gram matrices and small solves: public functions and checks, over any ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyext.interface.checks import check_choice, check_positive, check_storage, check_tensor
from pyext.interface.solve_checks import (
    check_products,
    check_rank,
    check_rows,
    check_segments,
    check_sums,
    count_rows,
    refuse_gradient,
)

ON_FAIL = ("ladder", "raise", "nan")
METHODS = ("auto", "exact", "rsvd")
FLOAT32_GRAM = 256
"""Bit of `Solved.info`: g came as float32, so its sums were rounded before they were solved."""


class Solved(NamedTuple):
    """What `spd_solve` finds."""

    z: Tensor
    """[L, R, d]: z g = p."""
    s: Tensor
    """[L, R, d]: z C for the lower factor C of g; empty unless half=True."""
    info: Tensor
    """[L] int32. 0: Cholesky; 1 to max_tries: with the jitter of that try; max_tries + 1: symmetric
    eigendecomposition; -k: pivot k failed (on_fail="nan"). Plus `FLOAT32_GRAM` if g is float32."""
    jitter: Tensor
    """[L]: what was added to the diagonal."""
    rcond: Tensor
    """[L]: estimate of 1 / (|g|_1 |g^-1|_1), never too small by much more than rounding."""


class DualSolved(NamedTuple):
    """What `dual_solve` finds."""

    z: Tensor
    """[R, d]."""
    info: Tensor
    """[] int32, as in `Solved`."""


class FactoredSvd(NamedTuple):
    """A product of two factors, truncated."""

    b: Tensor
    """[L, o, rank]; columns from `kept` on are zero."""
    a: Tensor
    """[L, rank, d]; rows from `kept` on are zero."""
    sv: Tensor
    """[L, R]: singular values before the truncation, falling; zeros beyond min(o, d)."""
    kept: Tensor
    """[L] int32: how many were kept."""
    err: Tensor
    """[L]: norm of what was cut off, relative to the norm of all."""


class Truncated(NamedTuple):
    """A dense matrix, truncated."""

    b: Tensor
    """[..., o, rank]."""
    a: Tensor
    """[..., rank, d]."""
    sv: Tensor
    """[..., rank]: the singular values that were kept."""
    err: Tensor
    """[...]: norm of what was cut off, relative to the norm of all."""


def _gram(gram: Tensor, x: Tensor) -> Tensor:
    """The accumulators [S, d, d] of rows [..., d], checked: a view of ``gram``."""
    check_rows("x", x)
    if isinstance(gram, Tensor) and gram.dim() == 2:
        gram = gram.unsqueeze(0)
    check_sums("gram", gram, ["S", x.shape[-1], x.shape[-1]])
    if gram.device != x.device:
        raise ValueError(f"gram: expected device {x.device}, got {gram.device}")
    return gram


def make_gram_acc_(op: Callable[..., Any]) -> Callable[..., None]:
    """`gram_acc_` over an op with the signature of `solve_gram_acc_`."""

    def gram_acc_(
        gram: Tensor,
        x: Tensor,
        *,
        row_weight: Tensor | None = None,
        seg: Tensor | None = None,
        products: torch.dtype = torch.float64,
    ) -> None:
        """Add ``x_s^T diag(row_weight_s) x_s`` to the Gram matrix of each segment.

        Args:
            gram: [S, d, d] or [d, d], float64 or float32. Its lower triangle is added to in place;
                what lies above is neither read nor written.
            x: [..., d], any float dtype, any strides but a gap between columns. All but the last
                dimension count rows, in order.
            row_weight: [rows] bool, float32 or float64, not negative. A row of weight 0 does not
                count, whatever it holds. None: all ones.
            seg: [S + 1] int64, rising offsets of rows within [0, rows]: segment s is the rows
                from seg[s] to seg[s + 1]. None: all rows, of one segment.
            products: type to multiply in; float64, or float32 unless x is float64. In float32 the
                products of up to 256 rows of a segment are summed, and those sums in float64:
                about twice as fast, and an entry is off by at most 2e-5, typically 1e-7, of the
                magnitudes of its products. That is good for a regulariser of 1e-5 of the Gram's
                norm or more. A product beyond 3e38 is infinite.

        Sums are made in float64, in an order that depends on the shapes alone.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
            NotImplementedError: x requires a gradient outside of no_grad.
        """
        refuse_gradient(gram=gram, x=x, row_weight=row_weight)
        sums = _gram(gram, x)
        check_segments(sums.shape[0], count_rows(x), x, row_weight, seg)
        check_products(products, x=x)
        op(sums, x, row_weight, seg, products)

    return gram_acc_


def make_gram_proj_acc_(op: Callable[..., Any]) -> Callable[..., Tensor]:
    """`gram_proj_acc_` over an op with the signature of `solve_gram_proj_acc_`."""

    def gram_proj_acc_(
        gram: Tensor,
        x: Tensor,
        a_stack: Tensor,
        *,
        row_weight: Tensor | None = None,
        seg: Tensor | None = None,
        products: torch.dtype = torch.float64,
    ) -> Tensor:
        """`gram_acc_`, and the projection of the same rows: x is read once.

        Args:
            gram, x, row_weight, seg, products: see `gram_acc_`.
            a_stack: [Rm, d] in the dtype of x or float32: the A matrices of all modules with this
                input, stacked.

        Returns:
            h [rows, Rm] = x a_stack^T, float32 (float64 for float64 x), multiplied and summed in
            float64. It is not weighted, but rows of weight 0 are zero.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
            NotImplementedError: an input requires a gradient outside of no_grad.
        """
        refuse_gradient(gram=gram, x=x, a_stack=a_stack, row_weight=row_weight)
        sums = _gram(gram, x)
        check_tensor("a_stack", a_stack, ["Rm", x.shape[-1]], x, (x.dtype, torch.float32))
        check_segments(sums.shape[0], count_rows(x), x, row_weight, seg)
        check_products(products, x=x)
        h: Tensor = op(sums, x, a_stack, row_weight, seg, products)
        return h

    return gram_proj_acc_


def make_cross_acc_(op: Callable[..., Any]) -> Callable[..., None]:
    """`cross_acc_` over an op with the signature of `solve_cross_acc_`."""

    def cross_acc_(
        cross: Tensor,
        left: Tensor,
        right: Tensor,
        *,
        row_weight: Tensor | None = None,
        seg: Tensor | None = None,
        products: torch.dtype = torch.float64,
    ) -> None:
        """Add ``left_s^T diag(row_weight_s) right_s`` to the cross-Gram matrix of each segment.

        Args:
            cross: [S, p, d] or [p, d], float64 or float32, added to in place.
            left: [..., p]. right: [..., d]. As many rows each; their dtypes may differ.
            row_weight, seg, products: see `gram_acc_`.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
            NotImplementedError: an input requires a gradient outside of no_grad.
        """
        refuse_gradient(cross=cross, left=left, right=right, row_weight=row_weight)
        check_rows("left", left)
        check_rows("right", right)
        rows = count_rows(right)
        if count_rows(left) != rows:
            raise ValueError(f"left: expected {rows} rows as right, got {count_rows(left)}")
        if left.device != right.device:
            raise ValueError(f"left: expected device {right.device}, got {left.device}")
        sums = cross.unsqueeze(0) if isinstance(cross, Tensor) and cross.dim() == 2 else cross
        check_sums("cross", sums, ["S", left.shape[-1], right.shape[-1]])
        if cross.device != right.device:
            raise ValueError(f"cross: expected device {right.device}, got {cross.device}")
        check_segments(sums.shape[0], rows, right, row_weight, seg)
        check_products(products, left=left, right=right)
        op(sums, left, right, row_weight, seg, products)

    return cross_acc_


def make_sumsq_acc_(op: Callable[..., Any]) -> Callable[..., None]:
    """`sumsq_acc_` over an op with the signature of `solve_sumsq_acc_`."""

    def sumsq_acc_(
        out: Tensor,
        y: Tensor,
        *,
        bias: Tensor | None = None,
        row_weight: Tensor | None = None,
        seg: Tensor | None = None,
    ) -> None:
        """Add ``sum row_weight (y - bias)^2`` over the rows of each segment.

        Args:
            out: [S] float64, added to in place.
            y: [..., o], as x of `gram_acc_`. bias: [o] in the dtype of y or float32, or None.
            row_weight, seg: see `gram_acc_`.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
            NotImplementedError: an input requires a gradient outside of no_grad.
        """
        refuse_gradient(out=out, y=y, bias=bias, row_weight=row_weight)
        check_rows("y", y)
        check_tensor("out", out, ["S"], y, (torch.float64,))
        check_tensor("bias", bias, [y.shape[-1]], y, (y.dtype, torch.float32))
        check_segments(out.shape[0], count_rows(y), y, row_weight, seg)
        op(out, y, bias, row_weight, seg)

    return sumsq_acc_


def make_gram_combine(op: Callable[..., Any]) -> Callable[..., Tensor]:
    """`gram_combine` over an op with the signature of `solve_gram_combine`."""

    def gram_combine(grams: Tensor, lam: Tensor, gamma: Tensor) -> Tensor:
        """``sum_i lam[l, i] (grams[i] + gamma[l, i] I)`` for L modules that share one input.

        Args:
            grams: [N, d, d], float64 or float32; lower triangles are read.
            lam: [L, N] float64, positive. gamma: [L, N] float64, not negative.

        Returns:
            [L, d, d] in the dtype of grams: lower triangles, zeros above.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
            NotImplementedError: an input requires a gradient outside of no_grad.
        """
        refuse_gradient(grams=grams, lam=lam, gamma=gamma)
        _check_square("grams", grams, "N")
        check_tensor("lam", lam, ["L", grams.shape[0]], grams, (torch.float64,))
        check_tensor("gamma", gamma, list(lam.shape), grams, (torch.float64,))
        combined: Tensor = op(grams, lam, gamma)
        return combined

    return gram_combine


def _check_square(name: str, matrices: Tensor, count: str) -> None:
    check_sums(name, matrices, [count, "d", "d"])
    if matrices.shape[1] != matrices.shape[2]:
        raise ValueError(f"{name}: expected square matrices, got {list(matrices.shape)}")


def make_sym_fro_norm(op: Callable[..., Any]) -> Callable[..., Tensor]:
    """`sym_fro_norm` over an op with the signature of `solve_sym_fro_norm`."""

    def sym_fro_norm(grams: Tensor) -> Tensor:
        """Frobenius norms [N] float64 of symmetric matrices [N, d, d] from their lower triangles.

        Raises:
            ValueError, TypeError: grams is wrong.
            NotImplementedError: grams requires a gradient outside of no_grad.
        """
        refuse_gradient(grams=grams)
        _check_square("grams", grams, "N")
        norms: Tensor = op(grams)
        return norms

    return sym_fro_norm


def make_spd_solve(op: Callable[..., Any], op_: Callable[..., Any]) -> Callable[..., Solved]:
    """`spd_solve` over ops with the signatures of `solve_spd_solve` and `solve_spd_solve_`."""

    def spd_solve(
        g: Tensor,
        p: Tensor,
        *,
        on_fail: str = "ladder",
        jitter0: float = 1e-14,
        max_tries: int = 3,
        half: bool = False,
        inplace_factor: bool = False,
    ) -> Solved:
        """Solve ``z g = p`` for L symmetric positive definite matrices.

        A matrix that Cholesky cannot factor climbs a ladder: jitter0 times the largest magnitude of
        its diagonal is added to the diagonal, then a hundred times that, up to ``max_tries`` times;
        then it is decomposed into eigenvalues, of which those below eps d lambda_max count as
        zero (a pseudo-inverse). ``info`` says where on the ladder each matrix ended.

        Args:
            g: [L, d, d] float64 (float32 is widened, and flagged in info); lower triangles are
                read.
            p: [L, R, d] in the dtype of g.
            on_fail: "ladder"; "raise": what Cholesky cannot factor is an error; "nan": its z is
                NaN and its info -pivot.
            half: return s = z C as well, C being the lower triangular factor, g = C C^T: the
                factor that `factored_svd` weighs by.
            inplace_factor: overwrite g with C, lower triangles with zeros above (of the last rung:
                with the small eigenvalues raised to eps d lambda_max, so that C can be solved
                with).

        Returns:
            `Solved`, in the dtype of g; jitter and rcond are float64.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named. Entries that are not finite
                are (but for on_fail="nan"), and the message has the index of the matrix.
            NotImplementedError: an input requires a gradient outside of no_grad.
        """
        refuse_gradient(g=g, p=p)
        check_choice("on_fail", on_fail, ON_FAIL)
        check_positive("jitter0", jitter0)
        if max_tries < 0:
            raise ValueError(f"max_tries: expected at least 0, got {max_tries}")
        _check_square("g", g, "L")
        check_tensor("p", p, [g.shape[0], "R", g.shape[1]], g)
        options = (on_fail, jitter0, max_tries, half)
        return Solved(*(op_ if inplace_factor else op)(g, p, *options))

    return spd_solve


def make_dual_solve(op: Callable[..., Any]) -> Callable[..., DualSolved]:
    """`dual_solve` over an op with the signature of `solve_dual_solve`."""

    def dual_solve(y: Tensor, q: Tensor, a: Tensor, rho: Tensor, gamma: Tensor) -> DualSolved:
        """Solve through the Mt x Mt matrix ``K = gamma I + y y^T`` of few tokens.

        ``z = q^T K^-1 y + rho (a - (K^-1 y a^T)^T y)``, the solution of
        ``z (gamma I + y^T y) = q^T y + gamma rho a`` without a difference divided by gamma.

        Args:
            y: [Mt, d] float64 or float32. q: [Mt, R], a: [R, d], rho: [R], gamma: [], in the
                dtype of y; gamma is not negative. Mt = 0 is legal.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
            NotImplementedError: an input requires a gradient outside of no_grad.
        """
        refuse_gradient(y=y, q=q, a=a, rho=rho, gamma=gamma)
        check_sums("y", y, ["Mt", "d"])
        check_tensor("q", q, [y.shape[0], "R"], y)
        check_tensor("a", a, [q.shape[1], y.shape[1]], y)
        check_tensor("rho", rho, [q.shape[1]], y)
        check_tensor("gamma", gamma, [], y)
        return DualSolved(*op(y, q, a, rho, gamma))

    return dual_solve


def make_factored_svd(op: Callable[..., Any]) -> Callable[..., FactoredSvd]:
    """`factored_svd` over an op with the signature of `solve_factored_svd`."""

    def factored_svd(
        u: Tensor,
        v: Tensor,
        rank: int,
        *,
        chol: Tensor | None = None,
        energy: float = 0.0,
        balance: bool = True,
    ) -> FactoredSvd:
        """The best approximation of rank ``rank`` to ``u v``, without that product.

        Two thin QR decompositions and the SVD of an R x R matrix. With ``chol`` = C, v is Z C (s
        of `spd_solve`): then ``|(u Z - b a) C|_F`` is what is smallest, the error on the
        calibration outputs.

        Args:
            u: [L, o, R] float64 or float32. v: [L, R, d], chol: [L, d, d], in the dtype of u.
            rank: 1 to R.
            energy: in [0, 1]; above 0, the smallest rank is kept that reaches this share of the
                squared singular values, at most ``rank``.
            balance: both factors get the root of the singular values; else b has them all.

        Returns:
            `FactoredSvd`. Of each column of b the entry of largest magnitude is positive.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
            NotImplementedError: an input requires a gradient outside of no_grad.
        """
        refuse_gradient(u=u, v=v, chol=chol)
        check_sums("u", u, ["L", "o", "R"])
        check_tensor("v", v, [u.shape[0], u.shape[2], "d"], u)
        check_tensor("chol", chol, [u.shape[0], v.shape[2], v.shape[2]], u)
        check_rank(rank, u.shape[2], "R")
        if not 0 <= energy <= 1:
            raise ValueError(f"energy: expected 0 to 1, got {energy}")
        return FactoredSvd(*op(u, v, rank, chol, energy, balance))

    return factored_svd


def make_truncate_dense(op: Callable[..., Any]) -> Callable[..., Truncated]:
    """`truncate_dense` over an op with the signature of `solve_truncate_dense`."""

    def truncate_dense(
        w: Tensor,
        rank: int,
        *,
        method: str = "auto",
        oversample: int = 8,
        n_iter: int = 2,
        chol: Tensor | None = None,
        seed: int = 0,
    ) -> Truncated:
        """The best approximation of rank ``rank`` to a dense matrix, or nearly so.

        Halko, Martinsson and Tropp 2011, "Finding Structure with Randomness", algorithms 4.4 and
        5.1, for "rsvd". With ``chol`` = C it is ``|(w - b a) C|_F`` that is smallest.

        Args:
            w: [..., o, d]: float32 or float64, or 16 bits, which are computed in float32.
            rank: 1 to min(o, d).
            method: "exact": SVD. "rsvd": randomised range finder with ``n_iter`` power iterations
                and ``oversample`` extra columns. "auto": "rsvd" if 4 (rank + oversample) is at
                most min(o, d).
            chol: [..., d, d] lower triangular, in the type that w is computed in.
            seed: of the random matrix; the same seed gives the same bits on one machine.

        Returns:
            `Truncated`, in the type that w is computed in; singular values are split evenly, signs
            as in `factored_svd`. err is that of the factors returned.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
            NotImplementedError: an input requires a gradient outside of no_grad.
        """
        refuse_gradient(w=w, chol=chol)
        check_choice("method", method, METHODS)
        check_storage("w", w)
        if w.dim() < 2:
            raise ValueError(f"w: expected shape [..., o, d], got {list(w.shape)}")
        wide = w if w.dtype == torch.float64 else w.float()
        check_tensor("chol", chol, [*w.shape[:-2], w.shape[-1], w.shape[-1]], wide)
        least = min(w.shape[-2:])
        check_rank(rank, least, "min(o, d)")
        for name, value in (("oversample", oversample), ("n_iter", n_iter)):
            if value < 0:
                raise ValueError(f"{name}: expected at least 0, got {value}")
        if method == "auto":
            method = "rsvd" if 4 * (rank + oversample) <= least else "exact"
        return Truncated(*op(wide, rank, method, oversample, n_iter, chol, seed))

    return truncate_dense
