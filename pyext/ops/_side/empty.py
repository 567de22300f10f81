"""Shapes and memory of gradients, for fake kernels."""

from __future__ import annotations

from torch import Tensor

from pyext.ops._side.wide import wide


def like_given(parameter: Tensor | None, other: Tensor) -> Tensor:
    """A tensor like the parameter; if there is none, an empty one of the type of sums."""
    if parameter is not None:
        return parameter.new_empty(parameter.shape)
    return other.new_empty(0, dtype=wide(other))


def like_activations(h: Tensor) -> Tensor:
    """A gradient to h [B, K, N, d]: without gaps, taps or tokens outermost as in h."""
    if h.stride(1) < h.stride(2):
        batch, taps, tokens, d = h.shape
        return h.new_empty((batch, tokens, taps, d)).transpose(1, 2)
    return h.new_empty(h.shape)
