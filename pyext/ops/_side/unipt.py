"""UniPT's side network as one op, `side_unipt_block`: a chain of the family's others.

As one op it decides what stays in memory for the backward: h, alpha and the means, row sums, z, o
and what norms leave. Queries and the inner activations of Proj are made again from those, scores
from h.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops._side import guide
from pyext.ops._side.saved import keep, kept, named, names_of
from pyext.ops._side.tail import proj_backward, proj_forward, up_of_block
from pyext.ops._side.wide import wide

_ops = torch.ops.pyext
_library = torch.library.Library("pyext", "FRAGMENT")
_library.define(
    "side_unipt_block(Tensor[] x, Tensor[] w, Tensor[] bias, Tensor? a, Tensor? c, Tensor? guide, "
    "Tensor? guide_w, Tensor? guide_b, Tensor gate_w, Tensor gate_b, Tensor[] proj_w, "
    "Tensor[] proj_b, Tensor? proj_gamma, Tensor? proj_beta, Tensor? up_w, Tensor? up_b, "
    "Tensor? up_gamma, Tensor? up_beta, Tensor? residual, Tensor? mask, Tensor? cu_seqlens, "
    "Tensor? base_index, Tensor? base_scale, str pre_act, str norm, float norm_eps, float rho, "
    "float eps, str eps_mode, float proj_eps, str up_pre_act, str up_post_act, float up_eps) "
    "-> (Tensor y, Tensor alpha, Tensor h, Tensor rstd, Tensor pool, Tensor rowsum, Tensor z, "
    "Tensor o, Tensor proj_stat, Tensor proj_xhat, Tensor up_stat, Tensor up_xhat)"
)
_OUTPUTS = ("y", "alpha", "h", "rstd", "pool", "rowsum", "z", "o",
            "proj_stat", "proj_xhat", "up_stat", "up_xhat")  # fmt: skip


def _check_tokens(s: Any) -> None:
    """Refuse a sample without a token that counts; on a device, where to look is to wait, not."""
    ends = s.mask if s.mask is not None else s.cu_seqlens
    if ends is None or not ends.is_cpu:
        return
    empty = (ends.sum(-1) if s.mask is not None else ends.diff()) == 0
    if empty.any():
        raise ValueError(f"unipt: sample {int(empty.int().argmax())} has 0 valid tokens")


def _taps(s: Any) -> int:
    """How many taps interact: all, or all but the one that guides."""
    return len(s.x) - (s.guide is None)


_PLAIN = (None, None, 1.0, None, None, None, 0.0, 0)  # a map up and nothing else


def _guide(s: Any, h: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [B, M, d], and their means [B, d]."""
    if s.guide is None:
        affine = (guide.last(s.a), guide.last(s.c))
        return guide.apply(h[:, -1], *affine), guide.apply(pool[:, -1], *affine)
    q = _ops.side_up(s.guide, s.guide_w, s.guide_b, s.pre_act, "none", *_PLAIN)[0]
    return q, q[:, 0].to(pool.dtype)


def _mixing(s: Any, h: Tensor, q: Tensor, alpha: Tensor) -> tuple[Any, ...]:
    """The arguments of the attention."""
    taps = _taps(s)
    features = (q, h[:, :taps], guide.rows(s.a, taps), guide.rows(s.c, taps))
    base = (s.base_index, s.base_scale)
    return (*features, s.mask, alpha, None, s.rho, *base, s.eps, s.eps_mode, False, s.cu_seqlens)


def _weighing(s: Any, pool: Tensor, pool_q: Tensor) -> tuple[Any, ...]:
    """The arguments of the confidence."""
    taps = _taps(s)
    affine = (guide.rows(s.a, taps), guide.rows(s.c, taps))
    return pool_q, pool[:, :taps].contiguous(), *affine, s.gate_w, s.gate_b


def _unipt(*inputs: Any) -> tuple[Tensor, ...]:
    s = named("side_unipt_block", inputs)
    _check_tokens(s)
    down = (s.pre_act, "none", s.norm, s.norm_eps, s.mask, s.cu_seqlens, "layer", True)
    h, rstd, _, pool = _ops.side_project(s.x, s.w, s.bias, *down)
    q, pool_q = _guide(s, h, pool)
    alpha = _ops.side_confidence(*_weighing(s, pool, pool_q))
    z, rowsum = _ops.side_relu_attend(*_mixing(s, h, q, alpha))
    none = [h.new_empty(0) for _ in range(6)]
    o, proj_norm = z, none[:2]
    if s.proj_w:
        o, *proj_norm = proj_forward(s, z, q)
    else:
        z = none[2]
    y = o if s.cu_seqlens is None else o.squeeze(0)
    up_norm = none[3:5]
    if s.up_w is None:
        o = none[5]
    else:
        norm = (s.up_gamma, s.up_beta, s.up_eps)
        tail = (s.residual, None, None, 0.0, 0)
        y, *up_norm = _ops.side_up(y, s.up_w, s.up_b, s.up_pre_act, s.up_post_act, *norm, *tail)
    return y, alpha, h, rstd, pool, rowsum, z, o, *proj_norm, *up_norm


_library.impl("side_unipt_block", _unipt, "CompositeExplicitAutograd")


@torch.library.register_fake("pyext::side_unipt_block")
def _(*inputs):  # type: ignore[no-untyped-def]
    s = named("side_unipt_block", inputs)
    x, d, packed = s.x[0], s.w[0].shape[0], s.cu_seqlens is not None
    batch, tokens = (1, x.shape[0]) if packed else x.shape[:2]
    samples = s.cu_seqlens.shape[0] - 1 if packed else batch
    rows, taps = (tokens if s.guide is None else 1), _taps(s)

    def sums(exists: bool, *shape: int) -> Tensor:
        return x.new_empty(shape if exists else (0,), dtype=wide(x))

    def stored(exists: bool, *shape: int) -> Tensor:
        return x.new_empty(shape if exists else (0,))

    ups, projected = s.up_w is not None, bool(s.proj_w)
    lead = (tokens,) if packed else (batch, rows)
    width = s.up_w.shape[0] if ups else d
    normed, up_normed = s.proj_gamma is not None, s.up_gamma is not None
    middle = (batch, rows, d)
    return (
        stored(True, *lead, width),
        sums(True, samples, taps),
        stored(True, batch, len(s.x), tokens, d),
        sums(s.norm == "layer", batch, len(s.x), tokens),
        sums(True, samples, len(s.x), d),
        sums(True, batch, taps, rows),
        stored(projected, *middle),
        stored(ups, *middle),
        sums(normed, batch, rows),
        stored(normed, *middle),
        sums(up_normed, *lead),
        stored(up_normed, *lead, width),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    s = vars(named("side_unipt_block", inputs))
    outputs = dict(zip(_OUTPUTS, output, strict=True))
    # The residual has the gradient of y.
    keep(ctx, s | outputs | {"residual": None, "y": None})
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, g_y: Tensor, *_: Tensor) -> tuple[Any, ...]:
    s = kept(ctx)
    needs = dict(zip(names_of("side_unipt_block"), ctx.needs_input_grad, strict=True))
    s.res_scale, s.dropout_p, s.seed = None, 0.0, 0
    packed, taps = s.cu_seqlens is not None, _taps(s)
    found: dict[str, Any] = {}
    g_o = g_y
    if s.up_w is not None:
        o = s.o.squeeze(0) if packed else s.o
        g_o, found = up_of_block(s, o, g_y, needs["residual"])
    if packed:
        g_o = g_o.unsqueeze(0)
    q, pool_q = _guide(s, s.h, s.pool)
    g_z = g_o
    if s.proj_w:
        g_z, of_proj = proj_backward(s, s.z, g_o)
        found |= of_proj
    mixed = _ops.side_relu_attend_backward(g_z, s.rowsum, *_mixing(s, s.h, q, s.alpha))
    g_q, g_h, g_a, g_c, g_alpha, _, g_scale = mixed
    weighed = _weighing(s, s.pool, pool_q)
    g_pool_q, g_pool, of_a, of_c, g_gate = _ops.side_confidence_backward(g_alpha, s.alpha, *weighed)
    if s.proj_w:
        g_q = g_q + g_o
    g_a = None if s.a is None else g_a + of_a
    g_c = None if s.c is None else g_c + of_c
    found |= {"gate_w": g_gate, "gate_b": torch.zeros_like(s.gate_b)}
    found["base_scale"] = None if s.base_scale is None else g_scale
    need_x = list(needs["x"])
    parts = [(slice(0, taps), g_h, g_pool)]
    if s.guide is None:
        affine = (guide.last(s.a), guide.last(s.c))
        back = guide.apply_backward(g_q, g_pool_q, s.h[:, -1], s.pool[:, -1], *affine)
        parts.append((slice(taps, taps + 1), back[0].unsqueeze(1), back[1].unsqueeze(1)))  # type: ignore[union-attr]
        g_a, g_c = guide.join_rows(g_a, back[2]), guide.join_rows(g_c, back[3])
    else:
        g_q = g_q.clone()
        g_q[:, 0] += g_pool_q.to(g_q.dtype)
        found |= _own_guide_backward(s, g_q, needs["guide"])
    found |= {"x": [], "w": [], "bias": [], "a": g_a, "c": g_c}
    for part, of_h, of_pool in parts:
        lists = (s.x[part], s.w[part], s.bias[part])
        down = (s.pre_act, "none", s.norm, s.norm_eps, s.mask, s.cu_seqlens)
        rstd = s.rstd[:, part] if s.norm == "layer" else None
        grads = (of_h, None, None, of_pool, need_x[part])
        of_x, of_w, of_bias = _ops.side_project_backward(*lists, *down, s.h[:, part], rstd, *grads)
        found["x"] += [g if need else None for g, need in zip(of_x, need_x[part], strict=True)]
        found["w"] += of_w
        found["bias"] += of_bias
    found.setdefault("proj_w", [])
    found.setdefault("proj_b", [])
    return tuple(found.get(name) for name in names_of("side_unipt_block"))


def _own_guide_backward(s: Any, g_q: Tensor, need_x: bool) -> dict[str, Tensor | None]:
    back = _ops.side_up_backward(
        *(s.guide, s.guide_w, s.guide_b, s.pre_act, "none", *_PLAIN),
        *(None, None, g_q, need_x, False),
    )
    return {
        "guide": back[0] if need_x else None,
        "guide_w": back[1],
        "guide_b": None if s.guide_b is None else back[2],
    }


torch.library.register_autograd("pyext::side_unipt_block", _backward, setup_context=_setup)
