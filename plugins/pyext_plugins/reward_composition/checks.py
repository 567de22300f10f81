"""What the arguments must be: one error that names the argument, before any work."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TOLERANCE = 1e-4  # by which weights may miss the sum of 1


def log_weights(log_w: Tensor) -> int:
    """How many rewards there are."""
    _tensor("log_w", log_w)
    if log_w.dim() != 1 or not len(log_w):
        raise ValueError(f"log_w: expected shape [n], got {list(log_w.shape)}")
    if log_w.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"log_w: expected float32 or float64, got {log_w.dtype}")
    total = float(log_w.double().exp().sum())
    if not abs(total - 1) <= TOLERANCE:  # NaN too
        raise ValueError(f"log_w: expected weights that sum to 1, their sum is {total:.6g}")
    return len(log_w)


def vector(name: str, value: Tensor, log_w: Tensor) -> None:
    """A tensor [n] beside log_w [n]."""
    _tensor(name, value)
    if value.shape != log_w.shape:
        raise ValueError(
            f"{name}: expected shape {list(log_w.shape)} as log_w, got {list(value.shape)}"
        )
    _floating(name, value)
    if value.device != log_w.device:
        raise ValueError(f"{name} is on {value.device} and log_w on {log_w.device}")


def rewards(r: Tensor, count: int, device: torch.device, valid: Tensor | None) -> Tensor:
    """Rewards [B, n], in float32 at least, NaN where they are not valid."""
    matrix("r", r, count)
    if r.device != device:
        raise ValueError(f"r is on {r.device} and log_w on {device}")
    r = r if r.dtype == torch.float64 else r.float()
    if valid is not None:
        _tensor("valid", valid)
        if valid.shape != r.shape or valid.dtype != torch.bool:
            raise ValueError(
                f"valid: expected bool of shape {list(r.shape)} as r, got {valid.dtype} of "
                f"{list(valid.shape)}"
            )
        if valid.device != device:
            raise ValueError(f"valid is on {valid.device} and r on {device}")
        r = r.masked_fill(~valid, torch.nan)
    infinite = r.isinf().nonzero()
    if len(infinite):
        row, column = infinite[0].tolist()
        raise ValueError(f"r: expected no infinity, reward {column} of row {row} is")
    return r


def matrix(name: str, r: Tensor, count: int) -> None:
    _tensor(name, r)
    if r.dim() != 2 or r.shape[1] != count or not len(r):
        raise ValueError(
            f"{name}: expected shape [B, {count}] for {count} weights, got {list(r.shape)}"
        )
    _floating(name, r)


def no_infinity(name: str, value: Tensor) -> None:
    infinite = value.isinf().nonzero().flatten().tolist()
    if infinite:
        raise ValueError(f"{name}: expected no infinity, number {infinite[0]} is")


def all_finite(name: str, value: Tensor) -> None:
    if not value.isfinite().all():
        raise ValueError(f"{name}: expected finite values, got {value.tolist()}")


def step_sizes(lam: float | Sequence[float] | Tensor, count: int) -> Tensor:
    """A step for each reward; [n], float64."""
    try:
        steps = torch.as_tensor(lam, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"lam: expected a number, or {count} of them, got {lam!r}") from error
    if steps.shape not in ((), (count,)):
        raise ValueError(
            f"lam: expected one number, or {count}, got a shape of {list(steps.shape)}"
        )
    if not (steps.isfinite().all() and (steps >= 0).all()):
        raise ValueError(f"lam: expected finite and at least 0, got {steps.tolist()}")
    return steps.expand(count)


def bounds(floor: float, cap: float, count: int) -> None:
    """Of the weights."""
    if not 0 <= floor < 1 / count:
        raise ValueError(
            f"floor: expected at least 0 and below 1/{count}, the equal weight, got {floor}"
        )
    if not (1 / count < cap <= 1 or cap == 1):
        raise ValueError(
            f"cap: expected above 1/{count}, the equal weight, and at most 1, got {cap}"
        )


def group(size: int | None, batch: int, divides: bool) -> int:
    """The size of groups; ``divides`` says that a standard deviation is taken within them."""
    size = batch if size is None else whole("group", size)
    if batch % size:
        raise ValueError(f"group: expected a divisor of the batch of {batch}, got {size}")
    if divides and size < 2:
        raise ValueError(f"group: expected at least 2 for a standard deviation, got {size}")
    return size


def whole(name: str, value: int) -> int:
    """A whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return value


def eps(value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"eps: expected finite and at least 0, got {value}")


def choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


def names(values: Sequence[str]) -> tuple[str, ...]:
    """Names of rewards, each once."""
    if isinstance(values, str) or not all(isinstance(name, str) for name in values):
        raise TypeError(f"names: expected a sequence of names, got {values!r}")
    if not values or len(set(values)) != len(values):
        raise ValueError(f"names: expected at least one, and each once, got {list(values)}")
    return tuple(values)


def numbers(name: str, values: Sequence[float], count: int) -> Tensor:
    """A finite number for each reward; [n], float64."""
    try:
        found = torch.as_tensor(values, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected {count} numbers, got {values!r}") from error
    if found.shape != (count,):
        raise ValueError(f"{name}: expected {count} numbers, got a shape of {list(found.shape)}")
    all_finite(name, found)
    return found


def shares(name: str, values: Sequence[float] | None, count: int) -> Tensor:
    """Positive weights of sum 1, equal ones for None; [n], float64."""
    if values is None:
        return torch.full((count,), 1 / count, dtype=torch.float64)
    found = numbers(name, values, count)
    total = float(found.sum())
    if not (found > 0).all() or abs(total - 1) > TOLERANCE:
        raise ValueError(f"{name}: expected positive weights of sum 1, got {found.tolist()}")
    return found / total


def _tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def _floating(name: str, value: Tensor) -> None:
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected floating point, got {value.dtype}")
