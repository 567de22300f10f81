"""Checks that the functions of the family ``lowrank`` share: one error, before any work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyext.interface.checks import check_storage, check_tensor

ACTIVATIONS = ("identity", "relu", "silu", "gelu", "tanh")
MAX_RANK = 128
MAX_RAGGED = 512  # adapters of different ranks in one batch
INDICES = (torch.int32, torch.int64)


def wide(tensor: Tensor) -> torch.dtype:
    """The type of rank intermediates, gates and scales beside activations of this type."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def check_weights(
    name: str, tensor: Tensor | None, shape: Sequence[int | str], like: Tensor
) -> None:
    """Low-rank factors: the dtype of the activations, or float32."""
    check_tensor(name, tensor, shape, like, (like.dtype, wide(like)))


def check_rank(name: str, factor: Tensor, like: Tensor) -> tuple[int, int]:
    """E and r of a factor [E, r, D]."""
    check_weights(name, factor, ["E", "r", "D"], like)
    count, rank, width = factor.shape
    if not 1 <= rank <= MAX_RANK:
        raise ValueError(f"{name}: expected a rank from 1 to {MAX_RANK}, got {rank}")
    if rank > width:
        raise ValueError(f"{name}: rank {rank} is more than the width {width}")
    return count, rank


def check_factors(
    name: str, factor: Tensor, ranks: Sequence[int] | None, like: Tensor
) -> tuple[int, int]:
    """E and the largest rank of factors [E, r, D], or with ranks [sum of ranks, D]."""
    if ranks is None:
        return check_rank(name, factor, like)
    if not 1 <= len(ranks) <= MAX_RAGGED:
        raise ValueError(f"ranks: expected 1 to {MAX_RAGGED} adapters, got {len(ranks)}")
    check_ranks(ranks, len(ranks), MAX_RANK)
    check_weights(name, factor, [sum(ranks), "D"], like)
    rank, width = max(ranks, default=0), factor.shape[1]
    if rank > width:
        raise ValueError(f"{name}: rank {rank} is more than the width {width}")
    return len(ranks), rank


def check_pair(A: Tensor, B: Tensor) -> None:
    if A.shape[:2] != B.shape[:2]:
        raise ValueError(
            f"B: expected shape [{A.shape[0]}, {A.shape[1]}, ...] for A {list(A.shape)}, got "
            f"{list(B.shape)}"
        )


def check_width(
    name: str, x: Tensor, factor_name: str, factor: Tensor, shape: Sequence[str] = ("E", "r", "D")
) -> None:
    check_storage(name, x)
    if x.dim() == 0 or factor.dim() != len(shape) or x.shape[-1] != factor.shape[-1]:
        raise ValueError(
            f"{name} is {list(x.shape)} and {factor_name} is {list(factor.shape)}, expected "
            f"[..., D] and [{', '.join(shape)}]"
        )


def check_flags(name: str, flags: Sequence[object] | None, count: int) -> None:
    if flags is not None and len(flags) != count:
        raise ValueError(f"{name}: expected {count} values, one an adapter, got {len(flags)}")


def check_ranks(ranks: Sequence[int] | None, count: int, rank: int) -> None:
    check_flags("ranks", ranks, count)
    for e, r in enumerate(ranks or ()):
        if not 0 <= r <= rank:
            raise ValueError(f"ranks: expected 0 to {rank}, got {r} for adapter {e}")


def as_rows(tensor: Tensor) -> Tensor:
    """[..., D] as [N, D]."""
    return tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])


def check_writable(name: str, tensor: Tensor) -> None:
    """What is written in place must be contiguous, and no leaf whose gradient is wanted."""
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor to write in place")
    if tensor.is_leaf and tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: a leaf that requires a gradient cannot be written in place")


def check_routing(
    idx: Tensor | None, segments: tuple[Tensor, Tensor] | None, rows: int, like: Tensor
) -> None:
    """An adapter per row, or sorted segments of rows."""
    if (idx is None) == (segments is None):
        raise ValueError("idx: expected either idx or segments")
    check_tensor("idx", idx, [rows], like, INDICES)
    if segments is not None:
        start, ids = segments
        check_tensor("segments[1]", ids, ["S"], like, INDICES)
        check_tensor("segments[0]", start, [len(ids) + 1], like, INDICES)
