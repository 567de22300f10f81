"""Shapes and memory of gradients, for fake kernels."""

from __future__ import annotations

from torch import Tensor


def like_given(parameter: Tensor | None, other: Tensor) -> Tensor:
    """A tensor like the parameter; if there is none, an empty one of the type of sums."""
    if parameter is not None:
        return parameter.new_empty(parameter.shape)
    return other.new_empty(0, dtype=sums_dtype(other))


def sums_dtype(tensor: Tensor):  # type: ignore[no-untyped-def]
    """The type of sums over values of this tensor's type."""
    import torch

    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def like_activations(h: Tensor) -> Tensor:
    """A gradient to h [B, K, N, d]: without gaps, taps or tokens outermost as in h."""
    if h.stride(1) < h.stride(2):
        batch, taps, tokens, d = h.shape
        return h.new_empty((batch, tokens, taps, d)).transpose(1, 2)
    return h.new_empty(h.shape)
