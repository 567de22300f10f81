"""SHERL's early route as one op, `side_sherl_block`: a chain of the family's others.

As one op it decides what stays in memory for the backward: h (of a gated projection its inner
activations alone), the merged features and what norms leave. Gated features are made again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._side import guide
from pyext.ops._side.project import empty_h
from pyext.ops._side.saved import keep, kept, named, names_of
from pyext.ops._side.tail import proj_backward, proj_forward, up_of_block
from pyext.ops._side.wide import wide

_ops = torch.ops.pyext
_library = torch.library.Library("pyext", "FRAGMENT")
_library.define(
    "side_sherl_block(Tensor[] x, Tensor[] w, Tensor[] bias, Tensor? a, Tensor? c, Tensor[] w2, "
    "Tensor[] b2, Tensor[] w3, Tensor[] b3, Tensor gate_w, Tensor gate_b, Tensor[] proj_w, "
    "Tensor[] proj_b, Tensor? proj_gamma, Tensor? proj_beta, Tensor up_w, Tensor? up_b, "
    "Tensor? up_gamma, Tensor? up_beta, Tensor? residual, Tensor? res_scale, str pre_act, "
    "str norm, float norm_eps, float eps_l1, float eps_l2, float proj_eps, str up_pre_act, "
    "str up_post_act, float up_eps, float dropout_p, int seed) -> (Tensor y, Tensor beta, "
    "Tensor h, Tensor rstd, Tensor z, Tensor v, Tensor proj_stat, Tensor proj_xhat, "
    "Tensor up_stat, Tensor up_xhat)"
)
_OUTPUTS = ("y", "beta", "h", "rstd", "z", "v", "proj_stat", "proj_xhat",
            "up_stat", "up_xhat")  # fmt: skip


def _merging(s: Any, features: Tensor) -> tuple[Any, ...]:
    """The arguments of the merge; the first are the guide's features."""
    taps = len(s.x) - 1
    g = guide.apply(features[:, -1], guide.last(s.a), guide.last(s.c))
    affine = (guide.rows(s.a, taps), guide.rows(s.c, taps))
    gate = (s.gate_w, s.gate_b, s.eps_l1, s.eps_l2, not s.proj_w)
    return g, features[:, :taps], *affine, *gate


def _sherl(*inputs: Any) -> tuple[Tensor, ...]:
    s = named("side_sherl_block", inputs)
    none = [s.x[0].new_empty(0) for _ in range(4)]
    if s.w2:
        gates = (s.w2, s.b2, s.w3, s.b3)
        features, h = _ops.side_project_gated(s.x, s.w, s.bias, *gates, "token")
        rstd = s.x[0].new_empty(0, dtype=wide(s.x[0]))
    else:
        down = (s.pre_act, "none", s.norm, s.norm_eps, None, None, "token", False)
        h, rstd, _, _ = _ops.side_project(s.x, s.w, s.bias, *down)
        features = h
    merging = _merging(s, features)
    v, beta = _ops.side_antired(*merging)
    z, proj_norm = none[0], none[1:3]
    if s.proj_w:
        z = v
        v, *proj_norm = proj_forward(s, z, merging[0])
    norm = (s.up_gamma, s.up_beta, s.up_eps)
    tail = (s.residual, s.res_scale, None, s.dropout_p, s.seed)
    y, *up_norm = _ops.side_up(v, s.up_w, s.up_b, s.up_pre_act, s.up_post_act, *norm, *tail)
    return y, beta, h, rstd, z, v, *proj_norm, *up_norm


_library.impl("side_sherl_block", _sherl, "CompositeExplicitAutograd")


@torch.library.register_fake("pyext::side_sherl_block")
def _(*inputs):  # type: ignore[no-untyped-def]
    s = named("side_sherl_block", inputs)
    x, d = s.x[0], s.w[0].shape[0]
    batch, tokens = x.shape[:2]
    width = s.up_w.shape[0]

    def sums(exists: bool, *shape: int) -> Tensor:
        return x.new_empty(shape if exists else (0,), dtype=wide(x))

    def stored(exists: bool, *shape: int) -> Tensor:
        return x.new_empty(shape if exists else (0,))

    normed, up_normed = s.proj_gamma is not None, s.up_gamma is not None
    middle = (batch, tokens, d)
    return (
        stored(True, batch, tokens, width),
        sums(True, batch, tokens, len(s.x) - 1),
        empty_h(x, len(s.x), d, "token", False),
        sums(s.norm == "layer" and not s.w2, batch, len(s.x), tokens),
        stored(bool(s.proj_w), *middle),
        stored(True, *middle),
        sums(normed, batch, tokens),
        stored(normed, *middle),
        sums(up_normed, batch, tokens),
        stored(up_normed, batch, tokens, width),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    s = vars(named("side_sherl_block", inputs))
    outputs = dict(zip(_OUTPUTS, output, strict=True))
    # The residual is needed for the gradient of its scale alone.
    residual = s["residual"] if ctx.needs_input_grad[list(s).index("res_scale")] else None
    keep(ctx, s | outputs | {"residual": residual, "y": None, "beta": None})
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, g_y: Tensor, *_: Tensor) -> tuple[Any, ...]:
    s = kept(ctx)
    needs = dict(zip(names_of("side_sherl_block"), ctx.needs_input_grad, strict=True))
    g_v, found = up_of_block(s, s.v, g_y, needs["residual"], needs["res_scale"])
    g_z = g_v
    if s.proj_w:
        g_z, of_proj = proj_backward(s, s.z, g_v)
        found |= of_proj
    gates = (s.w2, s.b2, s.w3, s.b3)
    features, *inner = _ops.side_gated_features(s.h, *gates) if s.w2 else (s.h,)
    merging = _merging(s, features)
    g_g, g_h, g_a, g_c, g_gate_w, g_gate_b = _ops.side_antired_backward(g_z, *merging)
    if s.proj_w:
        g_g = g_g + g_v
    found |= {"gate_w": g_gate_w, "gate_b": g_gate_b}
    affine = (guide.last(s.a), guide.last(s.c))
    g_last, _none, of_a, of_c = guide.apply_backward(g_g, None, features[:, -1], g_g, *affine)
    found["a"] = guide.join_rows(None if s.a is None else g_a, of_a)
    found["c"] = guide.join_rows(None if s.c is None else g_c, of_c)
    names = ("x", "w", "bias", "w2", "b2", "w3", "b3")
    found |= {name: [] for name in names}
    need_x, taps = list(needs["x"]), len(s.x) - 1
    for part, of_h in ((slice(0, taps), g_h), (slice(taps, taps + 1), g_last.unsqueeze(1))):
        lists = [getattr(s, name)[part] for name in names]
        if s.w2:
            again = [products[part] for products in inner]
            back = _ops.side_project_gated_backward(
                *lists, s.h[:, part], *again, of_h, need_x[part]
            )
        else:
            down = (s.pre_act, "none", s.norm, s.norm_eps, None, None)
            rstd = s.rstd[:, part] if s.norm == "layer" else None
            grads = (of_h, None, None, None, need_x[part])
            back = _ops.side_project_backward(*lists[:3], *down, s.h[:, part], rstd, *grads)
        for name, gradients in zip(names, back, strict=False):
            found[name] += gradients
    found["x"] = [g if need else None for g, need in zip(found["x"], need_x, strict=True)]
    found.setdefault("proj_w", [])
    found.setdefault("proj_b", [])
    return tuple(found.get(name) for name in names_of("side_sherl_block"))


torch.library.register_autograd("pyext::side_sherl_block", _backward, setup_context=_setup)
