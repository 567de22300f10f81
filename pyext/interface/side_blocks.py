"""Whole side networks, UniPT's and SHERL's: public functions and checks, over any implementation.

Parameters come in groups, one a part of the network; a plugin's modules hold the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyext.interface.checks import check_choice, check_positive, check_tensor
from pyext.interface.side_checks import (
    ACTIVATIONS,
    EPS_MODES,
    check_affine,
    check_gate_lists,
    check_list,
    check_parameter,
    check_sequences,
    check_taps,
)


class Down(NamedTuple):
    """Down-projections, one a tap: ``a_k o Norm(pre_act(x_k) w_k^T + bias_k) + c_k``."""

    w: Sequence[Tensor]  # K of [d, D_k]
    bias: Sequence[Tensor] = ()  # K of [d], or none
    a: Tensor | None = None  # [K, d]: weights of the norms
    c: Tensor | None = None  # [K, d]: their biases
    pre_act: str = "none"
    norm: str = "none"  # or "layer"
    eps: float = 1e-5


class GatedDown(NamedTuple):
    """SHERL's gated down-projections: see `pyext.reference.side.project_gated`."""

    w1: Sequence[Tensor]  # K of [d, D_k]
    b1: Sequence[Tensor]
    w2: Sequence[Tensor]  # K of [d, d]
    b2: Sequence[Tensor]
    w3: Sequence[Tensor]  # K of [d, d]
    b3: Sequence[Tensor]  # K of [d], as b1 and b2


class Gate(NamedTuple):
    """One linear map from d to 1, shared by the taps."""

    w: Tensor  # [d]
    b: Tensor  # [1]


class Guide(NamedTuple):
    """A guide of its own instead of the last tap: ``pre_act(x) w^T + b``, pre_act as of `Down`."""

    x: Tensor  # [B, 1, E0]: one token
    w: Tensor  # [d, E0]
    b: Tensor | None = None  # [d]


class Proj(NamedTuple):
    """A linear map, or two with a ReLU between them, then a LayerNorm if gamma is given."""

    w: Sequence[Tensor]  # [d, d]; or [e, d], [d, e]
    b: Sequence[Tensor]
    gamma: Tensor | None = None  # [d]
    beta: Tensor | None = None
    eps: float = 1e-5


class Up(NamedTuple):
    """The map up: ``post_act(LN(pre_act(o) w^T + b))``, the norm if gamma is given."""

    w: Tensor  # [E, d]
    b: Tensor | None = None
    pre_act: str = "relu"
    post_act: str = "none"
    gamma: Tensor | None = None  # [E]
    beta: Tensor | None = None
    eps: float = 1e-5


class UniptOutput(NamedTuple):
    """What `unipt_block` returns."""

    y: Tensor  # [B, N, E]; [B, 1, E] with a guide of its own; [T, E] when packed
    alpha: Tensor  # [B, K'] weights of the taps that interact; no gradient


class SherlOutput(NamedTuple):
    """What `sherl_block` returns."""

    y: Tensor  # [B, N, E]
    beta: Tensor  # [B, N, K - 1] weights of the shallow taps; no gradient


def _check_down(x: Sequence[Tensor], down: Down, packed: bool) -> int:
    check_choice("down.pre_act", down.pre_act, ACTIVATIONS)
    check_choice("down.norm", down.norm, ("none", "layer"))
    check_positive("down.eps", down.eps)
    check_taps(x, down.w, "down.w", packed)
    d: int = down.w[0].shape[0]
    check_list("down.bias", down.bias, len(x), [d], x[0])
    check_affine(down.a, down.c, len(x), d, x[0])
    return d


def _check_gate(gate: Gate, d: int, like: Tensor) -> None:
    check_parameter("gate.w", gate.w, [d], like)
    check_parameter("gate.b", gate.b, [1], like)


def _check_norm(
    name: str, gamma: Tensor | None, beta: Tensor | None, eps: float, width: int, like: Tensor
) -> None:
    if (gamma is None) != (beta is None):
        raise ValueError(f"{name}.gamma: expected beta beside it, or neither")
    check_parameter(f"{name}.gamma", gamma, [width], like)
    check_parameter(f"{name}.beta", beta, [width], like)
    check_positive(f"{name}.eps", eps)


def _check_proj(proj: Proj, d: int, like: Tensor) -> None:
    if len(proj.w) not in (1, 2) or len(proj.b) != len(proj.w):
        raise ValueError(
            f"proj: expected 1 or 2 weights with a bias each, got {len(proj.w)} and {len(proj.b)}"
        )
    inner: int | str = d if len(proj.w) == 1 else "e"
    check_tensor("proj.w[0]", proj.w[0], [inner, d], like)
    check_tensor("proj.b[0]", proj.b[0], [proj.w[0].shape[0]], like)
    if len(proj.w) == 2:
        check_tensor("proj.w[1]", proj.w[1], [d, proj.w[0].shape[0]], like)
        check_tensor("proj.b[1]", proj.b[1], [d], like)
    _check_norm("proj", proj.gamma, proj.beta, proj.eps, d, like)


def _check_up(up: Up, d: int, like: Tensor) -> int:
    check_choice("up.pre_act", up.pre_act, ACTIVATIONS)
    check_choice("up.post_act", up.post_act, ACTIVATIONS)
    check_tensor("up.w", up.w, ["E", d], like)
    width: int = up.w.shape[0]
    check_tensor("up.b", up.b, [width], like)
    _check_norm("up", up.gamma, up.beta, up.eps, width, like)
    return width


def _check_guide(guide: Guide, d: int, batch: int, like: Tensor) -> None:
    check_tensor("guide.x", guide.x, [batch, 1, "E0"], like)
    check_tensor("guide.w", guide.w, [d, guide.x.shape[2]], like)
    check_tensor("guide.b", guide.b, [d], like)


def make_unipt_block(op: Callable[..., Any]) -> Callable[..., UniptOutput]:
    """`unipt_block` over an op with the signature of `side_unipt_block`."""

    def unipt_block(
        x: Sequence[Tensor],
        down: Down,
        gate: Gate,
        proj: Proj | None = None,
        up: Up | None = None,
        *,
        guide: Guide | None = None,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        rho: float = 1.0,
        base_index: Tensor | None = None,
        base_scale: Tensor | None = None,
        eps: float = 1e-8,
        eps_mode: str = "add",
    ) -> UniptOutput:
        """UniPT's side network, from the taps to the adapted features.

        Down-projections F_k; the last tap guides the others, or ``guide`` guides all. Their
        `relu_attend` with the weights of `confidence` over the masked means is Z; then
        O = G + Proj(Z), or O = Z without ``proj``; then Y = Up(O) + residual, or Y = O without
        ``up``. Diao et al. 2024, "UniPT: Universal Parallel Tuning for Transfer Learning with
        Efficient Parameter and Memory", steps 1 to 4. Not causal.

        Args:
            x: K tensors [B, N, D_k], or [T, D_k] with ``cu_seqlens``; in one dtype with all
                matrices and biases of matrices. A tap gets a gradient only if it requires one.
            down, gate, proj, up: parameters.
            guide: a guide of its own; then rho must be 0.
            residual: [B, N or 1, E] (packed: [T, E]), added to Y as it is; or None.
            mask: [B, N] bool, True where a token counts.
            cu_seqlens: [B + 1] int32, the ends of packed sequences.
            rho, base_index, base_scale, eps, eps_mode: as in `relu_attend`.

        Returns:
            ``UniptOutput(y, alpha)``.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named. On the CPU also where a sample
                has no token that counts.
        """
        packed = cu_seqlens is not None
        check_choice("eps_mode", eps_mode, EPS_MODES)
        check_positive("eps", eps)
        d = _check_down(x, down, packed)
        like = x[0]
        batch = like.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        tokens = like.shape[-2]
        taps = len(x) - (guide is None)
        if taps < 1:
            raise ValueError("unipt needs at least one tap plus a guide")
        check_sequences(mask, cu_seqlens, batch, tokens, like)
        _check_gate(gate, d, like)
        if proj is not None:
            _check_proj(proj, d, like)
        width = d if up is None else _check_up(up, d, like)
        if guide is not None:
            if packed:
                raise ValueError("guide: expected none with cu_seqlens")
            _check_guide(guide, d, batch, like)
            if rho:
                raise ValueError(
                    f"identity term needs equal query and key lengths (got 1, {tokens})"
                )
        rows = [tokens] if packed else [batch, tokens if guide is None else 1]
        check_tensor("residual", residual, [*rows, width], like)
        if residual is not None and up is None:
            raise ValueError("residual: expected up beside it, got none")
        check_tensor("base_index", base_index, [batch], like, (torch.int64,))
        check_parameter("base_scale", base_scale, [taps], like)
        if base_scale is not None and base_index is None:
            raise ValueError("base_scale: expected base_index beside it, got none")
        own = (None, None, None) if guide is None else guide
        mlp = Proj((), ()) if proj is None else proj
        w, b, pre_act, post_act, gamma, beta, up_eps = up or (
            None,
            None,
            "none",
            "none",
            *[None] * 2,
            1e-5,
        )
        y, alpha = op(
            *(list(x), list(down.w), list(down.bias), down.a, down.c, *own, *gate),
            *(list(mlp.w), list(mlp.b), mlp.gamma, mlp.beta, w, b, gamma, beta, residual),
            *(mask, cu_seqlens, base_index, base_scale),
            *(down.pre_act, down.norm, down.eps, rho, eps, eps_mode, mlp.eps),
            *(pre_act, post_act, up_eps),
        )[:2]
        return UniptOutput(y, alpha)

    return unipt_block


def make_sherl_block(op: Callable[..., Any]) -> Callable[..., SherlOutput]:
    """`sherl_block` over an op with the signature of `side_sherl_block`."""

    def sherl_block(
        x: Sequence[Tensor],
        down: Down | GatedDown,
        gate: Gate,
        up: Up,
        *,
        proj: Proj | None = None,
        residual: Tensor | None = None,
        res_scale: Tensor | None = None,
        eps_l1: float = 1e-6,
        eps_l2: float = 1e-6,
        dropout_p: float = 0.0,
        seed: int = 0,
    ) -> SherlOutput:
        """SHERL's early route, from the taps to the input of the late layer.

        Down-projections f_k, the last of them the guide f_g; `antired` merges the others into z;
        v = z + f_g, or v = Proj(z) + f_g; y = Dropout(Up(v)) + res_scale * residual. Diao et al.
        2024, "SHERL: Synthesizing High Accuracy and Efficient Memory for Resource-Limited Transfer
        Learning", steps 1 to 6.

        Args:
            x: K tensors [B, N, D_k]; in one dtype with all matrices and biases of matrices.
            down, gate, up, proj: parameters.
            residual: [B, N, E], the hidden state the late layer would have received; or None.
            res_scale: a tensor of one element, tanh(gamma / T); or None for 1.
            eps_l1, eps_l2: as in `antired`.
            dropout_p, seed: as in `up`.

        Returns:
            ``SherlOutput(y, beta)``.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
        """
        if len(x) < 2:
            raise ValueError("sherl needs at least one shallow tap plus a guide")
        for name, value in (("eps_l1", eps_l1), ("eps_l2", eps_l2)):
            check_positive(name, value)
        if not 0 <= dropout_p < 1:
            raise ValueError(f"dropout_p: expected at least 0 and below 1, got {dropout_p}")
        like = x[0]
        if isinstance(down, Down):
            d = _check_down(x, down, packed=False)
            plain = down
            inner: tuple[Sequence[Tensor], ...] = ((), (), (), ())
        else:
            check_taps(x, down.w1, "down.w1", packed=False)
            d = down.w1[0].shape[0]
            inner = (down.w2, down.b2, down.w3, down.b3)
            check_gate_lists("down.", len(x), d, like, down.b1, *inner)
            plain = Down(down.w1, down.b1)
        _check_gate(gate, d, like)
        if proj is not None:
            _check_proj(proj, d, like)
        width = _check_up(up, d, like)
        check_tensor("residual", residual, [*like.shape[:2], width], like)
        if res_scale is not None:
            if residual is None:
                raise ValueError("res_scale: expected residual beside it, got none")
            if res_scale.numel() != 1:
                raise ValueError(f"res_scale: expected one element, got {list(res_scale.shape)}")
            check_parameter("res_scale", res_scale, list(res_scale.shape), like)
        mlp = Proj((), ()) if proj is None else proj
        y, beta = op(
            *(list(x), list(plain.w), list(plain.bias), plain.a, plain.c),
            *(list(tensors) for tensors in inner),
            *(*gate, list(mlp.w), list(mlp.b), mlp.gamma, mlp.beta),
            *(up.w, up.b, up.gamma, up.beta, residual, res_scale),
            *(plain.pre_act, plain.norm, plain.eps, eps_l1, eps_l2, mlp.eps),
            *(up.pre_act, up.post_act, up.eps, dropout_p, seed),
        )[:2]
        return SherlOutput(y, beta)

    return sherl_block
