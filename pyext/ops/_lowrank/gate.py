"""Fake kernels and gradient formula of `lowrank_noisy_gate`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.interface.lowrank_checks import wide
from pyext.ops._refuse import refuse_double_backward

_ops = torch.ops.pyext


@torch.library.register_fake("pyext::lowrank_noisy_gate")
def _(x, Wg, Wn, eps, topk, floor):  # type: ignore[no-untyped-def]
    shape = (x.shape[0], Wg.shape[1])
    gate, logits = (x.new_empty(shape, dtype=wide(x)) for _ in range(2))
    return gate, logits, gate.new_empty((0, shape[1]) if eps is None else shape)


@torch.library.register_fake("pyext::lowrank_noisy_gate_backward")
def _(g_gate, g_logits, x, Wg, Wn, eps, gate, deviations, need):  # type: ignore[no-untyped-def]
    like = (x, Wg, Wg if Wn is None else Wn)
    return tuple(t.new_empty(t.shape if n else (0,)) for t, n in zip(like, need, strict=True))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, Wg, Wn, eps, _topk, _floor = inputs
    gate, _logits, deviations = output
    ctx.save_for_backward(x, Wg, Wn, eps, gate, deviations)
    ctx.mark_non_differentiable(deviations)


def _backward(ctx: Any, g_gate: Tensor, g_logits: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    need = list(ctx.needs_input_grad[:3])
    found = _ops.lowrank_noisy_gate_backward(g_gate, g_logits, *ctx.saved_tensors, need)
    gradients = (x if needed else None for x, needed in zip(found, need, strict=True))
    return *gradients, None, None, None


torch.library.register_autograd("pyext::lowrank_noisy_gate", _backward, setup_context=_setup)
refuse_double_backward("lowrank_noisy_gate_backward")
