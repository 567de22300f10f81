"""Proj, one linear map or two with a ReLU between them: forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._side.up import up_backward

_ops = torch.ops.pyext


def _given(tensor: Tensor) -> Tensor | None:
    """What an op returned; empty stands for nothing."""
    return tensor if tensor.numel() else None


def _inner(s: Any, z: Tensor) -> Tensor:
    """What enters the last matrix."""
    if len(s.proj_w) == 1:
        return z
    plain = (None, None, s.proj_eps, None, None, None, 0.0, 0)
    y: Tensor = _ops.side_up(z, s.proj_w[0], s.proj_b[0], "none", "relu", *plain)[0]
    return y


def proj_forward(s: Any, z: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Proj(z) + residual, and what its norm leaves."""
    norm = (s.proj_gamma, s.proj_beta, s.proj_eps)
    tail = (residual, None, None, 0.0, 0)
    out: tuple[Tensor, Tensor, Tensor] = _ops.side_up(
        _inner(s, z), s.proj_w[-1], s.proj_b[-1], "none", "none", *norm, *tail
    )
    return out


def proj_backward(s: Any, z: Tensor, g_o: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """The gradient to z, and those to the parameters, by name."""
    inner = _inner(s, z)
    constants = ("none", "none", s.proj_eps, 0.0, 0)
    norm = (_given(s.proj_stat), _given(s.proj_xhat))
    saved = (inner, s.proj_w[-1], s.proj_b[-1], s.proj_gamma, s.proj_beta, None, None, None, *norm)
    g, g_w, g_b, _, _, g_gamma, g_beta, *_ = up_backward(saved, constants, g_o, True)
    g_ws, g_bs = [g_w], [g_b]
    if len(s.proj_w) == 2:
        assert g is not None
        g = torch.where(inner > 0, g, 0)
        first = (z, s.proj_w[0], s.proj_b[0], *([None] * 7))
        g, g_w, g_b, *_ = up_backward(first, constants, g, True)
        g_ws, g_bs = [g_w, *g_ws], [g_b, *g_bs]
    assert g is not None
    return g, {"proj_w": g_ws, "proj_b": g_bs, "proj_gamma": g_gamma, "proj_beta": g_beta}


def up_of_block(
    s: Any, o: Tensor, g_y: Tensor, need_residual: bool, need_scale: bool = False
) -> tuple[Tensor, dict[str, Any]]:
    """The gradient to what entered the map up, and those to its parameters, by name."""
    norm = (_given(s.up_stat), _given(s.up_xhat))
    given = (s.up_w, s.up_b, s.up_gamma, s.up_beta, s.residual, s.res_scale, None)
    constants = (s.up_pre_act, s.up_post_act, s.up_eps, s.dropout_p, s.seed)
    g, g_w, g_b, _, _, g_gamma, g_beta, _, g_residual, g_scale, *_ = up_backward(
        (o, *given, *norm), constants, g_y, True, (need_scale, False)
    )
    assert g is not None
    found = {"up_w": g_w, "up_b": g_b, "up_gamma": g_gamma, "up_beta": g_beta}
    if need_residual:
        found["residual"] = g_residual
    return g, found | {"res_scale": g_scale}
