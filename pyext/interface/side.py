"""Projecting taps: public functions and checks, over any implementation of the ops.

A tap is the hidden state of one layer of a frozen backbone, [B, N, D_k]: B samples, N tokens. K
taps are projected to one width d each. Projected activations are stored once, as h of logical shape
[B, K, N, d], and who reads them applies a per-channel affine: the features are
F_k = a_k o h_k + c_k with a, c of [K, d]. After a LayerNorm h is what the norm gives before its
affine, and a, c are the norm's weight and bias; after batch statistics h is the plain projection,
and the caller forms a and c from the sums; with no norm there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from pyext.interface.checks import check_choice, check_positive
from pyext.interface.side_checks import (
    ACTIVATIONS,
    LAYOUTS,
    NORMS,
    check_gate_lists,
    check_list,
    check_sequences,
    check_taps,
)


class Projected(NamedTuple):
    """What `project` returns."""

    h: Tensor  # [B, K, N, d] in the taps' dtype; [1, K, T, d] when packed
    stat0: Tensor  # norm "layer": 1 / sigma [B, K, N]; "batch": sums over tokens [K, d]; else [0]
    stat1: Tensor  # norm "batch": sums of squares over tokens [K, d]; else [0]
    pool: Tensor  # [B, K, d] mean of h over the tokens that count; [0] unless asked for


def make_project(op: Callable[..., Any]) -> Callable[..., Projected]:
    """`project` over an op with the signature of `side_project`."""

    def project(
        x: Sequence[Tensor],
        w: Sequence[Tensor],
        bias: Sequence[Tensor] = (),
        *,
        pre_act: str = "none",
        post_act: str = "none",
        norm: str = "none",
        eps: float = 1e-5,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        layout: str = "layer",
        pool: bool = False,
    ) -> Projected:
        """Project K taps of any widths: ``post_act(Norm(pre_act(x_k) w_k^T + bias_k))``.

        The first step of UniPT (Diao et al. 2024, "UniPT: Universal Parallel Tuning for Transfer
        Learning with Efficient Parameter and Memory") and of other side networks. The norm leaves
        its affine to whoever reads h.

        Args:
            x: K tensors [B, N, D_k], or [T, D_k] with ``cu_seqlens``; float32, bfloat16, float16 or
                float64. They get a gradient only if they require one.
            w: K tensors [d, D_k]. bias: K tensors [d], or none at all. In the taps' dtype.
            pre_act, post_act: "none", "relu", "gelu" or "quick_gelu"; ``post_act`` only without a
                norm.
            norm: "none"; "layer": over the channels of a token; "batch": h is left as it is, and
                sums over all tokens that count are returned, for the caller to add up over
                processes and to form a and c from.
            eps: of the norm "layer".
            mask: [B, N] bool, True where a token counts for ``pool`` and the norm "batch"; all
                tokens are projected.
            cu_seqlens: [B + 1] int32, the ends of packed sequences, from 0 to T.
            layout: which index is outermost in a sample's memory of h: "layer" or "token".
            pool: whether to return the means. They are 0 for a sample with no token that counts.

        Returns:
            ``Projected(h, stat0, stat1, pool)``; statistics and pool in float32 (float64 for
            float64). Gradients flow to x, w and bias from h, pool and the norm "batch"'s sums.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
        """
        check_choice("pre_act", pre_act, ACTIVATIONS)
        check_choice("post_act", post_act, ACTIVATIONS)
        check_choice("norm", norm, NORMS)
        check_choice("layout", layout, LAYOUTS)
        check_positive("eps", eps)
        if norm != "none" and post_act != "none":
            raise ValueError(f"post_act: expected 'none' with norm {norm!r}, got {post_act!r}")
        check_taps(x, w, "w", packed=cu_seqlens is not None)
        check_list("bias", bias, len(x), [w[0].shape[0]], x[0])
        check_sequences(mask, cu_seqlens, x[0].shape[0], x[0].shape[-2], x[0])
        given = (list(x), list(w), list(bias), pre_act, post_act, norm, eps, mask, cu_seqlens)
        return Projected(*op(*given, layout, pool))

    return project


def make_project_gated(op: Callable[..., Any]) -> Callable[..., Tensor]:
    """`project_gated` over an op with the signature of `side_project_gated`."""

    def project_gated(
        x: Sequence[Tensor],
        w1: Sequence[Tensor],
        b1: Sequence[Tensor],
        w2: Sequence[Tensor],
        b2: Sequence[Tensor],
        w3: Sequence[Tensor],
        b3: Sequence[Tensor],
        *,
        layout: str = "token",
    ) -> Tensor:
        """Project K taps through a gate: ``f_k = (H w2^T + b2 + H) o sigmoid(H w3^T + b3)``.

        With ``H = ReLU(x_k w1^T + b1)``: the sensing adapter of SHERL (Diao et al. 2024, "SHERL:
        Synthesizing High Accuracy and Efficient Memory for Resource-Limited Transfer Learning").

        Args:
            x: K tensors [B, N, D_k], as in `project`.
            w1: K tensors [d, D_k]. w2, w3: K tensors [d, d]. b1, b2, b3: K tensors [d].
            layout: as in `project`.

        Returns:
            f [B, K, N, d] in the taps' dtype.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
        """
        check_choice("layout", layout, LAYOUTS)
        check_taps(x, w1, "w1", packed=False)
        check_gate_lists("", len(x), w1[0].shape[0], x[0], b1, w2, b2, w3, b3)
        lists = (list(given) for given in (x, w1, b1, w2, b2, w3, b3))
        f: Tensor = op(*lists, layout)[0]
        return f

    return project_gated
