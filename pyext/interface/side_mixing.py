"""Mixing taps, across tokens and inside a token: public functions and checks, over any ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyext.interface.checks import check_choice, check_positive, check_storage, check_tensor
from pyext.interface.side_checks import (
    EPS_MODES,
    check_affine,
    check_parameter,
    check_sequences,
)


class Attended(NamedTuple):
    """What `relu_attend` returns."""

    z: Tensor  # [B, M, d], or [B, K', M, d] without alpha; dtype of q
    rowsum: Tensor  # [B, K', M]: sums of the weights before they are normalised; no gradient


class Merged(NamedTuple):
    """What `antired` returns."""

    z: Tensor  # [B, N, d] in the dtype of g
    beta: Tensor  # [B, N, K'] weights of the taps; no gradient


def _sums(tensor: Tensor) -> torch.dtype:
    """The type that sums over activations of this type have."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def make_confidence(op: Callable[..., Any]) -> Callable[..., Tensor]:
    """`confidence` over an op with the signature of `side_confidence`."""

    def confidence(
        pool_q: Tensor, pool: Tensor, a: Tensor | None, c: Tensor | None, w: Tensor, b: Tensor
    ) -> Tensor:
        """Weights of K' taps per sample: ``softmax_k(w . (pool_q o (a_k o pool_k + c_k)) + b)``.

        Step 3 of UniPT. The gradient of b is zero: a softmax does not see a shift.

        Args:
            pool_q: [B, d], mean features of the guide.
            pool: [B, K', d], means of h, as `project` gives them. Both float32 (or float64).
            a, c: [K', d] or None: the affine of h.
            w: [d]. b: [1].

        Returns:
            alpha [B, K'], in the dtype of ``pool``.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
        """
        check_tensor("pool", pool, ["B", "K'", "d"], pool, (torch.float32, torch.float64))
        batch, taps, d = pool.shape
        if taps == 0:
            raise ValueError("pool: expected at least one tap, got none")
        check_tensor("pool_q", pool_q, [batch, d], pool)
        halves = (pool.dtype, torch.float32, torch.bfloat16, torch.float16)
        for name, tensor, shape in (("a", a, [taps, d]), ("c", c, [taps, d]), ("w", w, [d])):
            check_tensor(name, tensor, shape, pool, halves)
        check_tensor("b", b, [1], pool, halves)
        alpha: Tensor = op(pool_q, pool, a, c, w, b)
        return alpha

    return confidence


def make_relu_attend(op: Callable[..., Any]) -> Callable[..., Attended]:
    """`relu_attend` over an op with the signature of `side_relu_attend`."""

    def relu_attend(
        q: Tensor,
        h: Tensor,
        a: Tensor | None = None,
        c: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        alpha: Tensor | None = None,
        score_bias: Tensor | None = None,
        rho: float = 0.0,
        base_index: Tensor | None = None,
        base_scale: Tensor | None = None,
        eps: float = 1e-8,
        eps_mode: str = "add",
        causal: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> Attended:
        """Attention with ReLU scores, normalised by their sum, over each of K' taps.

        With F_k = a_k o h_k + c_k, per tap and sample: ``A_ij = ReLU((q_i . F_kj + score_bias_k)
        m_j)``, ``R_i = sum_j A_ij``, ``H_ki = sum_j A_ij / nrm(R_i) F_kj + rho F_ki`` and, with a
        base, ``+ base_scale_k F_k,base``. The result is H, or ``sum_k alpha_k H_k``. Steps 2 and 4
        of UniPT; with a base SHERL's spatial step.

        Args:
            q: [B, M, d] for all taps, or [B, K', M, d].
            h: [B, K', N, d], the dtype of q.
            a, c: [K', d] or None: the affine of h.
            mask: [B, N] bool, True where a token may be attended to; any pattern.
            alpha: [B, K'] float32 (or float64), or None.
            score_bias: [K'] or None.
            rho: weight of a token's own features; needs M == N unless it is 0.
            base_index: [B] int64: a token whose features every row gets, or None.
            base_scale: [K'] or None for 1.
            eps, eps_mode: ``nrm(R)`` is R + eps ("add") or max(R, eps) ("clamp").
            causal: a row attends to no later token; needs M == N. The project's own option.
            cu_seqlens: [B + 1] int32: q is [1, T, d] and h [1, K', T, d], packed sequences that
                attend to themselves; alpha and base_index stay per sequence, the index counted
                within it.

        Returns:
            ``Attended(z, rowsum)``. A row without a positive score attends to nothing: its z is
            what rho and the base give. Gradients flow to q, h, a, c, alpha, score_bias, base_scale.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
        """
        check_choice("eps_mode", eps_mode, EPS_MODES)
        check_positive("eps", eps)
        check_storage("q", q)
        if q.dim() not in (3, 4):
            raise ValueError(f"q: expected shape [B, M, d] or [B, K', M, d], got {list(q.shape)}")
        taps = q.shape[1] if q.dim() == 4 else "K'"
        check_tensor("h", h, [q.shape[0], taps, "N", q.shape[-1]], q)
        batch, count, tokens, d = h.shape
        rows = q.shape[-2]
        if (rho or causal or cu_seqlens is not None) and rows != tokens:
            what = "identity term" if rho else "causal" if causal else "packed"
            raise ValueError(f"{what} needs equal query and key lengths (got {rows}, {tokens})")
        check_affine(a, c, count, d, q)
        check_sequences(mask, cu_seqlens, batch, tokens, q)
        samples = batch
        if cu_seqlens is not None:
            samples = cu_seqlens.shape[0] - 1
            if batch != 1:
                raise ValueError(f"q: expected a batch of 1 with cu_seqlens, got {batch}")
        check_tensor("alpha", alpha, [samples, count], q, (_sums(q),))
        check_parameter("score_bias", score_bias, [count], q)
        check_tensor("base_index", base_index, [samples], q, (torch.int64,))
        check_parameter("base_scale", base_scale, [count], q)
        if base_scale is not None and base_index is None:
            raise ValueError("base_scale: expected base_index beside it, got none")
        weights = (mask, alpha, score_bias, rho, base_index, base_scale)
        return Attended(*op(q, h, a, c, *weights, eps, eps_mode, causal, cu_seqlens))

    return relu_attend


def make_antired(op: Callable[..., Any]) -> Callable[..., Merged]:
    """`antired` over an op with the signature of `side_antired`."""

    def antired(
        g: Tensor,
        h: Tensor,
        a: Tensor | None,
        c: Tensor | None,
        w: Tensor,
        b: Tensor,
        *,
        eps_l1: float = 1e-6,
        eps_l2: float = 1e-6,
        add_guide: bool = True,
    ) -> Merged:
        """Merge K' taps inside each token, weighed down by how redundant they are.

        With f_k = a_k o h_k + c_k of one token, n_k = f_k / (|f_k| + eps_l2) and
        r_k = sum_l ReLU(n_k . n_l): ``beta_k = q_k / (sum_l q_l + eps_l1)`` for
        ``q_k = ReLU(w . (f_k o g) + b) / r_k``, and z = sum_k beta_k f_k (+ g). Steps 2 to 5 of
        SHERL. A zero vector has n = 0, r = 1 and no gradient through its norm.

        Args:
            g: [B, N, d], or [B, 1, d] for all tokens.
            h: [B, K', N, d], the dtype of g.
            a, c: [K', d] or None: the affine of h.
            w: [d]. b: [1].
            add_guide: whether z has g added.

        Returns:
            ``Merged(z, beta)``. Where no tap is relevant beta and its gradients are 0, and z is g.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
        """
        check_positive("eps_l1", eps_l1)
        check_positive("eps_l2", eps_l2)
        check_storage("g", g)
        check_tensor("h", h, ["B", "K'", "N", "d"], g)
        batch, taps, tokens, d = h.shape
        if taps == 0:
            raise ValueError("sherl needs at least one shallow tap plus a guide")
        rows = 1 if g.dim() == 3 and g.shape[1] == 1 else tokens
        check_tensor("g", g, [batch, rows, d], g)
        check_affine(a, c, taps, d, g)
        check_parameter("w", w, [d], g)
        check_parameter("b", b, [1], g)
        return Merged(*op(g, h, a, c, w, b, eps_l1, eps_l2, add_guide))

    return antired
