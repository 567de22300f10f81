"""Low-rank edits of rows, mixtures of adapters: public functions and checks, over any ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyext.interface.checks import check_choice, check_storage, check_tensor
from pyext.interface.lowrank_checks import (
    ACTIVATIONS,
    INDICES,
    MAX_RANK,
    as_rows,
    check_flags,
    check_pair,
    check_rank,
    check_ranks,
    check_weights,
    check_width,
    check_writable,
    wide,
)

FORMS = ("add", "reft", "mrt")
Activation = Literal["identity", "relu", "silu", "gelu", "tanh"]
Form = Literal["add", "reft", "mrt"]


class Orthonormal(NamedTuple):
    """What `orthonormalize` returns: ``X = L R``."""

    R: Tensor  # [..., r, D], orthonormal rows
    L: Tensor  # [..., r, r], lower triangular with a positive diagonal; no gradient


def make_rows(op: Callable[..., Any], op_: Callable[..., Any]) -> Callable[..., Tensor]:
    """`rows` over ops with the signatures of `lowrank_rows` and `lowrank_rows_`."""

    def rows(
        h: Tensor,
        A: Tensor,
        B: Tensor,
        a: Tensor | None = None,
        *,
        rows: Tensor,
        group: Tensor | None = None,
        scale: Tensor | None = None,
        act: Activation = "identity",
        form: Form = "add",
        inplace: bool = False,
    ) -> Tensor:
        """Low-rank edits of selected rows: ``h' = h + s B^T u``; all other rows stay as they are.

        With e the editor of a row and f the activation, ``u`` is

        - "add": ``f(A h + a)``: parallel adapters, DiReFT, and LoReFT with A = W - R, B = R;
        - "reft": ``f(A h + a) - B h``: the form of the ReFT library (Wu et al. 2024, equation 2);
        - "mrt": ``f(A h + a - B h)``: that of MRT (Liu et al. 2025, equation 1).

        Where f is the identity the last two are one.

        Args:
            h: [..., D] contiguous; float32, bfloat16, float16, or float64 on the CPU.
            A, B: [E, r, D] of the E editors, r at most 128; the dtype of h or float32.
            a: [E, r] or None.
            rows: [K] int32 or int64, rows of h as [N, D]; -1 stands for no row. A row may be named
                once.
            group: [K] int32 or int64, the editor of each; None where E is 1.
            scale: [E] float32 (float64 with float64), or None for 1.
            inplace: write into h, which must not be a leaf that requires a gradient.

        Returns:
            h' in the shape and dtype of h; h itself if ``inplace``. Rank intermediates are float32
            (float64 with float64). Only the K rows are saved for the backward.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named, and h is not written. A CUDA
                device is not waited for: there, rows outside are not written, and neither they nor
                duplicates are reported.
        """
        check_choice("act", act, ACTIVATIONS)
        check_choice("form", form, FORMS)
        check_width("h", h, "A", A)
        if not h.is_contiguous():
            raise ValueError("h: expected a contiguous tensor")
        count, rank = check_rank("A", A, h)
        check_weights("B", B, [count, rank, h.shape[-1]], h)
        check_weights("a", a, [count, rank], h)
        check_tensor("rows", rows, ["K"], h, INDICES)
        check_tensor("group", group, [len(rows)], h, INDICES)
        if group is None and count != 1:
            raise ValueError(f"group: expected the editor of every row, as there are {count}")
        check_tensor("scale", scale, [count], h, (wide(h),))
        if inplace:
            check_writable("h", h)
        arguments = (h, A, B, a, rows, group, scale, act, form)
        if inplace:
            op_(*arguments)
            return h
        out: Tensor = op(*arguments)[0]
        return out

    return rows


def make_mix(op: Callable[..., Any], op_: Callable[..., Any]) -> Callable[..., Tensor]:
    """`mix` over ops with the signatures of `lowrank_mix` and `lowrank_mix_`."""

    def mix(
        x: Tensor,
        A: Tensor,
        B: Tensor,
        base: Tensor | None = None,
        *,
        a: Tensor | None = None,
        c: Tensor | None = None,
        M: Tensor | None = None,
        m: Tensor | None = None,
        has_inner: Sequence[bool] | None = None,
        scale: Tensor | None = None,
        gate: Tensor | None = None,
        act: Activation = "identity",
        ranks: Sequence[int] | None = None,
        frozen: Sequence[bool] | None = None,
        inplace: bool = False,
    ) -> Tensor:
        """The gated sum of E low-rank adapters on top of a linear layer's output, in one pass.

        ``y = base + sum_e g_e s_e (B_e^T v_e + c_e)``, ``v_e = f(M_e u_e + m_e)`` where adapter e
        has an inner map and ``f(u_e)`` where it has none, ``u_e = A_e x + a_e``: the
        adapter-in-adapter mixture of PathWeave (Yu et al. 2024); without inner maps X-LoRA and sums
        of LoRAs.

        Args:
            x: [..., Din]; float32, bfloat16, float16, or float64 on the CPU.
            A, B: [E, r, Din] and [E, r, Do], r at most 128; the dtype of x or float32.
            base: [..., Do] in the dtype of x; None stands for zeros.
            a: [E, r], c: [E, Do] or None: biases.
            M: [E, r, r], m: [E, r] or None: inner maps, of the adapters that ``has_inner`` names.
            scale: [E] float32 (float64 with float64), or None for 1.
            gate: [..., E] of the same type, or None for 1; its rows need not sum to 1.
            ranks: of each adapter where they differ; what A and B hold beyond is not read.
            frozen: adapters whose parameters get no gradient, which then costs nothing: that of A,
                B, a, c and scale is zero there. Inner maps and the gate have theirs.
            inplace: write into base, which must not be a leaf that requires a gradient.

        Returns:
            y [..., Do] in the dtype of x; base itself if ``inplace``. Rank intermediates are
            float32 (float64 with float64). Saved for the backward besides the arguments: u, [..., E
            r] float32.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named, and base is not written.
        """
        check_choice("act", act, ACTIVATIONS)
        check_width("x", x, "A", A)
        count, rank = check_rank("A", A, x)
        check_rank("B", B, x)
        check_pair(A, B)
        lead, width = list(x.shape[:-1]), B.shape[2]
        check_tensor("base", base, [*lead, width], x)
        check_weights("a", a, [count, rank], x)
        check_weights("c", c, [count, width], x)
        _check_inner(M, m, has_inner, count, rank, x)
        check_tensor("scale", scale, [count], x, (wide(x),))
        check_tensor("gate", gate, [*lead, count], x, (wide(x),))
        check_ranks(ranks, count, rank)
        check_flags("frozen", frozen, count)
        if inplace and base is None:
            raise ValueError("base: expected a tensor to write in place, got None")
        if inplace and base is not None:
            check_writable("base", base)
        flat = as_rows(x)
        arguments = (
            A,
            B,
            a,
            c,
            M,
            m,
            scale,
            None if gate is None else as_rows(gate),
            [False] * count if has_inner is None else list(has_inner),
            [rank] * count if ranks is None else list(ranks),
            [False] * count if frozen is None else list(frozen),
            act,
        )
        if inplace and base is not None:
            op_(base, flat, *arguments)
            return base
        y: Tensor = op(flat, None if base is None else as_rows(base), *arguments)[0]
        return y.view(*lead, width)

    return mix


def _check_inner(
    M: Tensor | None,
    m: Tensor | None,
    has_inner: Sequence[bool] | None,
    count: int,
    rank: int,
    like: Tensor,
) -> None:
    check_weights("M", M, [count, rank, rank], like)
    check_weights("m", m, [count, rank], like)
    check_flags("has_inner", has_inner, count)
    if M is not None and has_inner is None:
        raise ValueError("has_inner: expected which adapters have an inner map, as M is given")
    if M is None and (m is not None or any(has_inner or ())):
        raise ValueError("M: expected inner maps, as m or has_inner asks for them, got None")


def make_orthonormalize(op: Callable[..., Any]) -> Callable[..., Orthonormal]:
    """`orthonormalize` over an op with the signature of `lowrank_orthonormalize`."""

    def orthonormalize(X: Tensor) -> Orthonormal:
        """Orthonormal rows that span those of X: ``X = L R``, ``R R^T = I``, L's diagonal positive.

        The sign-fixed thin QR decomposition of X^T (R is Q^T, L is the transposed triangle), for
        all matrices at once; what keeps a ReFT editor's subspace orthonormal. Call it once a step.

        Args:
            X: [..., r, D] float32 or float64, r at most 64 and at most D.

        Returns:
            R in the shape and dtype of X, with the exact gradient; L [..., r, r].

        Raises:
            ValueError, TypeError: an argument is wrong, or X is not finite or its rows are
                dependent; the matrix is named (a CUDA device is not waited for: L's diagonal is
                then NaN).
        """
        check_storage("X", X)
        if X.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                "X: expected float32 or float64, got "
                f"{X.dtype}: an orthonormal factor must be kept in float32"
            )
        if X.dim() < 2:
            raise ValueError(f"X: expected shape [..., r, D], got {list(X.shape)}")
        rank, width = X.shape[-2:]
        if not 1 <= rank <= MAX_RANK // 2:
            raise ValueError(f"X: expected a rank from 1 to {MAX_RANK // 2}, got {rank}")
        if rank > width:
            raise ValueError(f"X: rank {rank} is more than the width {width}")
        R, L = op(X.reshape(-1, rank, width))
        return Orthonormal(R.view(X.shape), L.view(*X.shape[:-2], rank, rank))

    return orthonormalize
