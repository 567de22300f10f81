"""Whole side networks in plain PyTorch: the other references, chained.

Signatures are such as a torch op can have: plain lists, empty where a parameter is absent.
"""

from __future__ import annotations

from torch import Tensor

from pyext.reference.side_attend import side_confidence, side_relu_attend
from pyext.reference.side_merge import side_antired, side_up
from pyext.reference.side_project import ACTIVATIONS, side_project, side_project_gated, widen


def _apply(a: Tensor | None, c: Tensor | None, h: Tensor) -> Tensor:
    """The affine [d] of one tap."""
    h = widen(h)
    if a is not None:
        h = h * widen(a)
    return h if c is None else h + widen(c)


def _rows(affine: Tensor | None, taps: slice | int) -> Tensor | None:
    return None if affine is None else affine[taps]


def _proj(
    z: Tensor,
    w: list[Tensor],
    b: list[Tensor],
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    residual: Tensor,
) -> Tensor:
    """Proj(z) + residual."""
    tail = (residual.to(z.dtype), None, None, 0.0, 0)
    if len(w) == 2:
        none = (None, None, eps, None, None, None, 0.0, 0)
        z = side_up(z, w[0], b[0], "none", "relu", *none)[0]
    return side_up(z, w[-1], b[-1], "none", "none", gamma, beta, eps, *tail)[0]


def _check_tokens(mask: Tensor | None, cu_seqlens: Tensor | None) -> None:
    counts = None
    if mask is not None:
        counts = mask.sum(-1)
    elif cu_seqlens is not None:
        counts = cu_seqlens.diff()
    if counts is not None and bool((counts == 0).any()):
        sample = int((counts == 0).int().argmax())
        raise ValueError(f"unipt: sample {sample} has 0 valid tokens")


def side_unipt_block(
    x: list[Tensor],
    w: list[Tensor],
    bias: list[Tensor],
    a: Tensor | None,
    c: Tensor | None,
    guide: Tensor | None,
    guide_w: Tensor | None,
    guide_b: Tensor | None,
    gate_w: Tensor,
    gate_b: Tensor,
    proj_w: list[Tensor],
    proj_b: list[Tensor],
    proj_gamma: Tensor | None,
    proj_beta: Tensor | None,
    up_w: Tensor | None,
    up_b: Tensor | None,
    up_gamma: Tensor | None,
    up_beta: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    base_index: Tensor | None,
    base_scale: Tensor | None,
    pre_act: str,
    norm: str,
    norm_eps: float,
    rho: float,
    eps: float,
    eps_mode: str,
    proj_eps: float,
    up_pre_act: str,
    up_post_act: str,
    up_eps: float,
) -> tuple[Tensor, Tensor]:
    """y and alpha: see `pyext.reference.side.unipt_block`."""
    _check_tokens(mask, cu_seqlens)
    packed = cu_seqlens is not None
    h, _, _, pool = side_project(
        x, w, bias, pre_act, "none", norm, norm_eps, mask, cu_seqlens, "layer", True
    )
    taps = slice(0, len(x) - (guide is None))
    if guide is None:
        g = _apply(_rows(a, -1), _rows(c, -1), h[:, -1])
        pool_q = _apply(_rows(a, -1), _rows(c, -1), pool[:, -1])
    else:
        assert guide_w is not None
        g = ACTIVATIONS[pre_act](widen(guide)) @ widen(guide_w).T
        g = g if guide_b is None else g + widen(guide_b)
        pool_q = g[:, 0]
    scale, shift = _rows(a, taps), _rows(c, taps)
    alpha = side_confidence(pool_q, pool[:, taps], scale, shift, gate_w, gate_b)
    q = g.to(h.dtype)
    form = (rho, base_index, base_scale, eps, eps_mode, False, cu_seqlens)
    o = side_relu_attend(q, h[:, taps], scale, shift, mask, alpha, None, *form)[0]
    if proj_w:
        o = _proj(o, proj_w, proj_b, proj_gamma, proj_beta, proj_eps, q)
    if packed:
        o = o.squeeze(0)
    if up_w is None:
        return o, alpha.detach()
    tail = (up_gamma, up_beta, up_eps, residual, None, None, 0.0, 0)
    return side_up(o, up_w, up_b, up_pre_act, up_post_act, *tail)[0], alpha.detach()


def side_sherl_block(
    x: list[Tensor],
    w: list[Tensor],
    bias: list[Tensor],
    a: Tensor | None,
    c: Tensor | None,
    w2: list[Tensor],
    b2: list[Tensor],
    w3: list[Tensor],
    b3: list[Tensor],
    gate_w: Tensor,
    gate_b: Tensor,
    proj_w: list[Tensor],
    proj_b: list[Tensor],
    proj_gamma: Tensor | None,
    proj_beta: Tensor | None,
    up_w: Tensor,
    up_b: Tensor | None,
    up_gamma: Tensor | None,
    up_beta: Tensor | None,
    residual: Tensor | None,
    res_scale: Tensor | None,
    pre_act: str,
    norm: str,
    norm_eps: float,
    eps_l1: float,
    eps_l2: float,
    proj_eps: float,
    up_pre_act: str,
    up_post_act: str,
    up_eps: float,
    dropout_p: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """y and beta: see `pyext.reference.side.sherl_block`."""
    if w2:
        h = side_project_gated(x, w, bias, w2, b2, w3, b3, "token")[0]
    else:
        none = (None, None, "token", False)
        h = side_project(x, w, bias, pre_act, "none", norm, norm_eps, *none)[0]
    shallow = slice(0, len(x) - 1)
    g = _apply(_rows(a, -1), _rows(c, -1), h[:, -1]).to(h.dtype)
    scale, shift = _rows(a, shallow), _rows(c, shallow)
    merge = (gate_w, gate_b, eps_l1, eps_l2, not proj_w)
    v, beta = side_antired(g, h[:, shallow], scale, shift, *merge)
    if proj_w:
        v = _proj(v, proj_w, proj_b, proj_gamma, proj_beta, proj_eps, g)
    tail = (up_gamma, up_beta, up_eps, residual, res_scale, None, dropout_p, seed)
    return side_up(v, up_w, up_b, up_pre_act, up_post_act, *tail)[0], beta
