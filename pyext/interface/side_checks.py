"""Checks that the functions of the family ``side`` share: one error, before any work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyext.interface.checks import check_storage, check_tensor

ACTIVATIONS = ("none", "relu", "gelu", "quick_gelu")
NORMS = ("none", "layer", "batch")
LAYOUTS = ("layer", "token")
EPS_MODES = ("add", "clamp")


def check_parameter(
    name: str, tensor: Tensor | None, shape: Sequence[int | str], like: Tensor
) -> None:
    """The same for small parameters, which may be wider than the activations."""
    check_tensor(name, tensor, shape, like, (like.dtype, torch.float32))


def check_taps(x: Sequence[Tensor], w: Sequence[Tensor], names: str, packed: bool) -> None:
    """Taps [B, N, D_k], or packed [T, D_k], beside weights [d, D_k]."""
    if len(x) == 0:
        raise ValueError("x: expected at least one tap, got none")
    if len(w) != len(x):
        raise ValueError(f"{names}: expected {len(x)} tensors, one a tap, got {len(w)}")
    first = x[0]
    for k, (tap, weight) in enumerate(zip(x, w, strict=True)):
        check_storage(f"x[{k}]", tap)
        check_storage(f"{names}[{k}]", weight)
        lead = "[T" if packed else "[B, N"
        if tap.dim() != (2 if packed else 3) or weight.dim() != 2:
            raise ValueError(
                f"tap {k} is {list(tap.shape)} and {names}[{k}] is {list(weight.shape)}, "
                f"expected {lead}, D_k] and [d, D_k]"
            )
        if tap.shape[-1] != weight.shape[1]:
            raise ValueError(
                f"tap {k} is {list(tap.shape)}, expected {lead}, {weight.shape[1]}] "
                f"for {names}[{k}] {list(weight.shape)}"
            )
        if tap.shape[-2] != first.shape[-2]:
            raise ValueError(
                f"tap {k} has {tap.shape[-2]} tokens, expected {first.shape[-2]}; pool it first"
            )
        check_tensor(f"x[{k}]", tap, [*first.shape[:-1], "D"], first)
        check_tensor(f"{names}[{k}]", weight, [w[0].shape[0], tap.shape[-1]], first)


def check_list(
    name: str, tensors: Sequence[Tensor], count: int, shape: Sequence[int], like: Tensor
) -> None:
    """A tensor a tap, or none at all."""
    if len(tensors) not in (0, count):
        raise ValueError(f"{name}: expected {count} tensors or none, got {len(tensors)}")
    for k, tensor in enumerate(tensors):
        check_tensor(f"{name}[{k}]", tensor, shape, like)


def check_gate_lists(
    prefix: str,
    taps: int,
    d: int,
    like: Tensor,
    b1: Sequence[Tensor],
    w2: Sequence[Tensor],
    b2: Sequence[Tensor],
    w3: Sequence[Tensor],
    b3: Sequence[Tensor],
) -> None:
    """What a gated projection has behind its first matrices: a tensor a tap, each."""
    lists = {"b1": (b1, [d]), "w2": (w2, [d, d]), "b2": (b2, [d]), "w3": (w3, [d, d])}
    for name, (tensors, shape) in (lists | {"b3": (b3, [d])}).items():
        if len(tensors) != taps:
            raise ValueError(
                f"{prefix}{name}: expected {taps} tensors, one a tap, got {len(tensors)}"
            )
        check_list(f"{prefix}{name}", tensors, taps, shape, like)


def check_sequences(
    mask: Tensor | None, cu_seqlens: Tensor | None, batch: int, tokens: int, like: Tensor
) -> None:
    """Mask [B, N] bool, or the ends [B + 1] int32 of packed sequences."""
    if mask is not None and cu_seqlens is not None:
        raise ValueError("mask: a packed input has none; leave it out or cu_seqlens")
    check_tensor("mask", mask, [batch, tokens], like, (torch.bool,))
    check_tensor("cu_seqlens", cu_seqlens, ["B + 1"], like, (torch.int32,))
    if cu_seqlens is not None and cu_seqlens.shape[0] < 2:
        raise ValueError("cu_seqlens: expected the ends of at least one sequence, got none")


def check_affine(a: Tensor | None, c: Tensor | None, taps: int, d: int, like: Tensor) -> None:
    check_parameter("a", a, [taps, d], like)
    check_parameter("c", c, [taps, d], like)
