"""Starting points of generation: places on circles through two inversions of a class."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyext.errors import UserError

BETWEEN = ("lerp", "slerp")  # which go from one inversion to the other, not around


def draw_pairs(inversions: int, count: int, generator: torch.Generator) -> Tensor:
    """Unordered pairs of different inversions, uniform over all of them, with replacement.

    Returns:
        int64, [count, 2], the smaller number first.

    Raises:
        UserError: there are fewer than 2 inversions.
    """
    if inversions < 2:
        raise UserError(f"inversions: expected at least 2, got {inversions}")
    first = torch.randint(inversions, (count,), generator=generator)
    second = torch.randint(inversions - 1, (count,), generator=generator)
    second += second >= first
    return torch.stack([first, second], 1).sort(1).values


def draw_angles(norm: str, count: int, generator: torch.Generator) -> Tensor:
    """Places on each circle, float64, [count]: radians in [0, 2 pi); for "lerp" and "slerp" the
    share of the way from one inversion to the other, in [0, 1)."""
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    return uniform if norm in BETWEEN else 2 * math.pi * uniform


def noise(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers of this shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)
