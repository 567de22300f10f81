"""Inputs of the ops that mix taps, and how these are held against the references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.ops.agreement import assert_near, gradients, random


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def activations(
    batch: int, taps: int, tokens: int, d: int, dtype: torch.dtype, layout: str
) -> Tensor:
    """h [B, K, N, d]; "slice" are all taps but the last of a larger one."""
    if layout == "token":
        return random(batch, tokens, taps, d, dtype=dtype).transpose(1, 2)
    if layout == "slice":
        return random(batch, taps + 1, tokens, d, dtype=dtype)[:, :taps]
    return random(batch, taps, tokens, d, dtype=dtype)


def leaves(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same inputs; those that have a gradient ask for it, in memory that is their own."""
    return {
        k: x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for k, x in inputs.items()
    }


def evaluate(
    function: Callable[..., Any], inputs: dict[str, Any]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and the gradients of their sum with fixed random weights by name."""
    own = leaves(inputs)
    asked = {k: x for k, x in own.items() if isinstance(x, Tensor) and x.requires_grad}
    outputs, found = gradients(lambda: function(**own), list(asked.values()))
    return outputs, dict(zip(asked, found, strict=True))


def compare(
    ours: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: dict[str, Any],
    factor: float = 1.0,
    gradient_factor: float = 8.0,
    dtype: torch.dtype | None = None,
) -> None:
    """Outputs and gradients of both agree, in units of `TOLERANCE`; ``dtype``: see there."""
    (got, g_got), (want, g_want) = (evaluate(f, inputs) for f in (ours, reference))
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.dtype == b.dtype
        assert_near(a, b, factor, f"output {i}", dtype)
    assert g_got.keys() == g_want.keys()
    for name, gradient in g_got.items():
        assert gradient.dtype == inputs[name].dtype, name
        assert_near(gradient, g_want[name], gradient_factor, name, dtype)
