"""Checks that the functions of the family ``solve`` share: one error, before any work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyext.interface.checks import check_storage, check_tensor

SUMS = (torch.float64, torch.float32)


def refuse_gradient(**tensors: Tensor | None) -> None:
    """Refuse what autograd would have to follow: these functions have no gradient."""
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise NotImplementedError(
                f"{name}: this function has no gradient; detach it or call it under torch.no_grad()"
            )


def check_sums(name: str, tensor: Tensor, shape: Sequence[int | str]) -> None:
    """A tensor of sums: float64, or float32 where that is enough."""
    check_tensor(name, tensor, shape, tensor, SUMS)


def check_rows(name: str, rows: Tensor) -> None:
    """Activations [..., d], whose last dimension has no gaps."""
    check_storage(name, rows)
    if rows.dim() < 1:
        raise ValueError(f"{name}: expected shape [..., d], got []")
    if rows.shape[-1] > 1 and rows.numel() and rows.stride(-1) != 1:
        raise ValueError(
            f"{name}: expected a contiguous last dimension, got stride {rows.stride(-1)}"
        )


def count_rows(rows: Tensor) -> int:
    """How many rows [..., d] has; 0-sized leading dimensions count as such."""
    count = 1
    for size in rows.shape[:-1]:
        count *= size
    return count


def check_segments(
    segments: int, rows: int, like: Tensor, row_weight: Tensor | None, seg: Tensor | None
) -> None:
    """``row_weight`` [rows] and ``seg`` [S + 1] beside S accumulators."""
    check_tensor("row_weight", row_weight, [rows], like, (torch.bool, torch.float32, torch.float64))
    if seg is not None:
        check_tensor("seg", seg, [segments + 1], like, (torch.int64,))
    elif segments != 1:
        raise ValueError(f"seg: expected the offsets of {segments} segments, got none")


def check_products(products: torch.dtype, **rows: Tensor) -> None:
    """The type to multiply in: float64, or float32 for rows that are not float64."""
    if products not in SUMS:
        raise TypeError(f"products: expected torch.float64 or torch.float32, got {products}")
    for name, own in rows.items():
        if products == torch.float32 and own.dtype == torch.float64:
            raise TypeError(f"products: expected float64 for {name} in float64, got float32")


def check_rank(rank: int, most: int, what: str) -> None:
    if not 1 <= rank <= most:
        raise ValueError(f"rank: expected 1 to {most} ({what}), got {rank}")
