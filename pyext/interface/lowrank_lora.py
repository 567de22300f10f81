"""Gates, and many LoRAs in one batch: public functions and checks, over any ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from pyext.interface.checks import check_positive, check_storage, check_tensor
from pyext.interface.lowrank_checks import (
    MAX_RANK,
    as_rows,
    check_factors,
    check_routing,
    check_weights,
    check_width,
    check_writable,
    wide,
)


class Gate(NamedTuple):
    """What `noisy_gate` returns, both [..., E] in float32 (float64 with float64)."""

    gate: Tensor
    logits: Tensor  # with the noise


def make_noisy_gate(op: Callable[..., Any]) -> Callable[..., Gate]:
    """`noisy_gate` over an op with the signature of `lowrank_noisy_gate`."""

    def noisy_gate(
        x: Tensor,
        Wg: Tensor,
        Wn: Tensor | None = None,
        eps: Tensor | None = None,
        *,
        topk: int | None = None,
        floor: float = 0.01,
    ) -> Gate:
        """Softmax over the largest ``l = x Wg + eps (softplus(x Wn) + floor)`` of every row.

        The noisy top-k gate of PathWeave, without noise where ``Wn`` and ``eps`` are None. The
        noise is an argument, so that a run, or a recomputation, repeats.

        Args:
            x: [..., D]; float32, bfloat16, float16, or float64 on the CPU.
            Wg, Wn: [D, E], E at most 128; the dtype of x or float32.
            eps: [..., E] float32 (float64 with float64), as a rule standard normal.
            topk: how many logits of a row have a gate above 0; None for all. Of equal logits the
                first is kept.
            floor: the least deviation of the noise.

        Returns:
            gate and logits. Gradients flow to x, Wg and Wn, through the gate and the logits.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
        """
        check_storage("x", x)
        if x.dim() == 0:
            raise ValueError("x: expected shape [..., D], got []")
        check_weights("Wg", Wg, [x.shape[-1], "E"], x)
        count = Wg.shape[1]
        if not 1 <= count <= MAX_RANK:
            raise ValueError(f"Wg: expected 1 to {MAX_RANK} columns, got {count}")
        if (Wn is None) != (eps is None):
            raise ValueError("eps: noise needs both Wn and eps, or neither")
        check_weights("Wn", Wn, [x.shape[-1], count], x)
        check_tensor("eps", eps, [*x.shape[:-1], count], x, (wide(x),))
        if topk is not None and not 1 <= topk <= count:
            raise ValueError(f"topk: expected 1 to {count}, got {topk}")
        check_positive("floor", floor)
        flat = as_rows(x)
        noise = None if eps is None else as_rows(eps)
        gate, logits, *_ = op(flat, Wg, Wn, noise, count if topk is None else topk, floor)
        shape = (*x.shape[:-1], count)
        return Gate(gate.view(shape), logits.view(shape))

    return noisy_gate


def make_lora_shrink(op: Callable[..., Any]) -> Callable[..., Tensor]:
    """`lora_shrink` over an op with the signature of `lowrank_lora_shrink`."""

    def lora_shrink(
        x: Tensor,
        A: Tensor,
        *,
        idx: Tensor | None = None,
        segments: tuple[Tensor, Tensor] | None = None,
        scale: Tensor | None = None,
        ranks: Sequence[int] | None = None,
    ) -> Tensor:
        """``z_n = s_e A_e x_n``, e the adapter of row n; zero for a row of no adapter.

        Args:
            x: [N, Din]; float32, bfloat16, float16, or float64 on the CPU.
            A: [E, r, Din], r at most 128; the dtype of x or float32. With ranks [sum of ranks,
                Din]: the factors one after another, without gaps.
            idx: [N] int32 or int64, the adapter of each row; -1 for none.
            segments: or instead (start [S + 1], id [S]): rows start[i] to start[i + 1] belong to
                adapter id[i]; start rises from 0 to N.
            scale: [E] float32 (float64 with float64), or None for 1.
            ranks: of each adapter where they differ, 0 to 128, of at most 512 adapters; r is then
                the largest.

        Returns:
            z [N, r] float32 (float64 with float64): a half-precision intermediate would lose
            digits. Beyond the rank of a row's adapter it is zero.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named. A CUDA device is not waited
                for: there, an adapter that does not exist counts as none.
        """
        check_width("x", x, "A", A, ("E", "r", "D") if ranks is None else ("sum of ranks", "D"))
        if x.dim() != 2:
            raise ValueError(f"x: expected shape [N, D], got {list(x.shape)}")
        count, _ = check_factors("A", A, ranks, x)
        check_routing(idx, segments, len(x), x)
        check_tensor("scale", scale, [count], x, (wide(x),))
        start, ids = segments or (None, None)
        z: Tensor = op(x, A, idx, start, ids, scale, ranks)
        return z

    return lora_shrink


def make_lora_expand(op: Callable[..., Any], op_: Callable[..., Any]) -> Callable[..., Tensor]:
    """`lora_expand` over ops with the signatures of `lowrank_lora_expand` and its `_` form."""

    def lora_expand(
        z: Tensor,
        B: Tensor,
        base: Tensor,
        *,
        idx: Tensor | None = None,
        segments: tuple[Tensor, Tensor] | None = None,
        offset: int = 0,
        inplace: bool = False,
        ranks: Sequence[int] | None = None,
    ) -> Tensor:
        """``y_n = base_n``, with ``B_e^T z_n`` added to its columns from ``offset`` on.

        Args:
            z: [N, r] float32 (float64 with float64), as `lora_shrink` gives it.
            B: [E, r, Do], or with ranks [sum of ranks, Do]; the dtype of base or float32.
            base: [N, at least offset + Do]; float32, bfloat16, float16, or float64 on the CPU.
            idx, segments: as in `lora_shrink`. A row of no adapter is that of base.
            inplace: write into base, which must not be a leaf that requires a gradient.
            ranks: as in `lora_shrink`. What z holds beyond the rank of a row's adapter is not read.

        Returns:
            y in the shape and dtype of base; base itself if ``inplace``.

        Raises:
            ValueError, TypeError: as `lora_shrink`; base is not written then.
        """
        check_storage("base", base)
        if base.dim() != 2:
            raise ValueError(f"base: expected shape [N, D], got {list(base.shape)}")
        _, rank = check_factors("B", B, ranks, base)
        check_tensor("z", z, [len(base), rank], base, (wide(base),))
        if offset < 0 or offset + B.shape[-1] > base.shape[1]:
            raise ValueError(
                f"offset: {offset} and the width {B.shape[-1]} of B do not fit base "
                f"{list(base.shape)}"
            )
        check_routing(idx, segments, len(base), base)
        start, ids = segments or (None, None)
        if inplace:
            check_writable("base", base)
            op_(base, z, B, idx, start, ids, offset, ranks)
            return base
        y: Tensor = op(base, z, B, idx, start, ids, offset, ranks)
        return y

    return lora_expand
