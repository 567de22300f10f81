"""The tail of a side network and its pooled inputs: public functions and checks, over any ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyext.interface.checks import check_choice, check_positive, check_storage, check_tensor
from pyext.interface.side_checks import (
    ACTIVATIONS,
    check_parameter,
)


def make_up(op: Callable[..., Any]) -> Callable[..., Tensor]:
    """`up` over an op with the signature of `side_up`."""

    def up(
        x: Tensor,
        w: Tensor,
        bias: Tensor | None = None,
        *,
        pre_act: str = "none",
        post_act: str = "none",
        gamma: Tensor | None = None,
        beta: Tensor | None = None,
        eps: float = 1e-5,
        residual: Tensor | None = None,
        res_scale: Tensor | None = None,
        out_scale: Tensor | None = None,
        dropout_p: float = 0.0,
        seed: int = 0,
    ) -> Tensor:
        """A projection with all that surrounds it.

        ``out_scale * Dropout(post_act(LN(pre_act(x) w^T + bias))) + res_scale * residual``: UniPT's
        Proj and Up, SHERL's gate (res_scale = tanh(gamma / T)), an adapter's way up (residual = the
        hidden state), Ladder-Side-Tuning's mixing (out_scale = 1 - mu, res_scale = mu).

        Args:
            x: [..., d]. w: [E, d]. bias: [E] or None. One dtype.
            pre_act, post_act: "none", "relu", "gelu" or "quick_gelu".
            gamma, beta: [E] both: weight and bias of a LayerNorm of this ``eps``; or neither.
            residual: [..., E] in the dtype of x, or None.
            res_scale, out_scale: tensors of one element, or None for 1.
            dropout_p: in [0, 1). What is kept depends on ``seed`` and the place of an element in
                y alone; give another seed at each step.

        Returns:
            y [..., E] in the dtype of x.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
        """
        check_choice("pre_act", pre_act, ACTIVATIONS)
        check_choice("post_act", post_act, ACTIVATIONS)
        check_positive("eps", eps)
        if not 0 <= dropout_p < 1:
            raise ValueError(f"dropout_p: expected at least 0 and below 1, got {dropout_p}")
        check_storage("x", x)
        if x.dim() < 1:
            raise ValueError("x: expected shape [..., d], got []")
        check_tensor("w", w, ["E", x.shape[-1]], x)
        outputs = w.shape[0]
        check_tensor("bias", bias, [outputs], x)
        if (gamma is None) != (beta is None):
            raise ValueError("gamma: expected beta beside it, or neither")
        check_parameter("gamma", gamma, [outputs], x)
        check_parameter("beta", beta, [outputs], x)
        check_tensor("residual", residual, [*x.shape[:-1], outputs], x)
        for name, scale in (("res_scale", res_scale), ("out_scale", out_scale)):
            if scale is not None and scale.numel() != 1:
                raise ValueError(f"{name}: expected one element, got shape {list(scale.shape)}")
            if scale is not None:
                check_parameter(name, scale, list(scale.shape), x)
        if res_scale is not None and residual is None:
            raise ValueError("res_scale: expected residual beside it, got none")
        norm = (gamma, beta, eps)
        y: Tensor = op(
            *(x, w, bias, pre_act, post_act, *norm),
            *(residual, res_scale, out_scale, dropout_p, seed),
        )[0]
        return y

    return up


def _check_map(x: Tensor) -> None:
    check_storage("x", x)
    if x.dim() != 4:
        raise ValueError(f"x: expected shape [B, C, H, W], got {list(x.shape)}")


def make_guided_pool(op: Callable[..., Any]) -> Callable[..., Tensor]:
    """`guided_pool` over an op with the signature of `side_guided_pool`."""

    def guided_pool(x: Tensor, guide: Tensor, *, eps: float = 1e-8) -> Tensor:
        """Pool r x r windows of a map: its mean, plus a mean that a guide weighs.

        Position p of a window has the weight ``A_p / (sum_q A_q + eps) + 1 / r^2`` with
        ``A_p = ReLU(sum_c guide_c x_cp)``: step 5 of UniPT.

        Args:
            x: [B, C, H, W], H = r h and W = r w.
            guide: [B, C, h, w] in the dtype of x.

        Returns:
            [B, h w, C]. Gradients flow to guide, and to x if it requires one.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
        """
        check_positive("eps", eps)
        _check_map(x)
        check_tensor("guide", guide, [x.shape[0], x.shape[1], "h", "w"], x)
        (height, width), (h, w) = x.shape[2:], guide.shape[2:]
        if h == 0 or w == 0 or height % h or width % w or height // h != width // w:
            raise ValueError(
                f"x: a map of {height}x{width} is not an integer multiple of the guide grid {h}x{w}"
            )
        y: Tensor = op(x, guide, eps)[0]
        return y

    return guided_pool


def make_maxavg_pool(op: Callable[..., Any]) -> Callable[..., Tensor]:
    """`maxavg_pool` over an op with the signature of `side_maxavg_pool`."""

    def maxavg_pool(x: Tensor, r: int) -> Tensor:
        """Maximum plus mean of r x r windows: SHERL's pooling of a frozen map.

        Args:
            x: [B, C, H, W]. It gets no gradient.
            r: side of a window; divides H and W.

        Returns:
            [B, H W / r^2, C] in the dtype of x.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
            NotImplementedError: x requires a gradient.
        """
        _check_map(x)
        if r < 1:
            raise ValueError(f"r: expected at least 1, got {r}")
        if x.shape[2] % r or x.shape[3] % r:
            raise ValueError(f"x: a map of {x.shape[2]}x{x.shape[3]} is not divisible by {r}")
        if x.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError("x: maxavg_pool has no gradient; detach it")
        y: Tensor = op(x, r)
        return y

    return maxavg_pool
