"""How to merge."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from pyext.errors import UserError, did_you_mean

Target = Literal["delta", "full"]
Schedule = Literal["sweep", "iterate"]
Regulariser = Literal["fro", "trace", "diag"]
Weighting = Literal["full", "delta", "one"]
Products = Literal["auto", "float32", "float64"]

_CHOICES = {
    "target": Target,
    "schedule": Schedule,
    "reg": Regulariser,
    "weighting": Weighting,
    "products": Products,
}
FLOAT32_ALPHA = 1e-5  # from here on float32 products move the result by 1e-3 of itself or less

_RANGES = {
    "alpha": (0.0, 1.0),
    "rounds": (1, 1000),
    "rank": (1, 1_000_000),
    "energy": (0.0, 1.0),
    "seed": (0, 2**31 - 1),
}


@dataclass(frozen=True)
class Settings:
    """How to merge.

    Args:
        alpha: of the regulariser, relative to the size of a Gram; 0 to 1.
        target: what the merged layer is to reproduce of each task: the output of its update, or of
            base and update together.
        schedule: "sweep" solves layers in their order, each on what the merged layers before give
            it; "iterate", as the authors do, solves all at once and runs the model anew.
        rounds: of "iterate", at most: it ends at a fixed point.
        reg: the size of a Gram: its Frobenius norm, the mean of its diagonal, or, entry by entry,
            its diagonal.
        weighting: of tasks, in each layer: inverse to the energy of what base and update give per
            energy of their weights (the authors' code), the same of the update alone where there
            is one (their paper), or one.
        rank: of the result, at most; None for the sum of the adapters' ("delta") or a full one
            ("full"). What is cut off is what changes outputs on the samples least.
        energy: share of the squared output to keep, which may take less than ``rank``; 0 for all.
        products: type that inputs are multiplied in for Grams, whose sums are float64 all the same.
            "float32" takes half the time, and moves the result by up to about 1e-8 / ``alpha`` of
            itself, or more with a ``target`` or ``reg`` that are not the defaults; "auto" takes it
            with these where ``alpha`` is 1e-5 or more. Inputs in float64 are multiplied in float64
            whatever this says.
        seed: of the signs that the norm of large cross-Grams is estimated from.

    Raises:
        UserError: a value is outside its range.
    """

    alpha: float = 1e-4
    target: Target = "delta"
    schedule: Schedule = "sweep"
    rounds: int = 10
    reg: Regulariser = "fro"
    weighting: Weighting = "full"
    rank: int | None = None
    energy: float = 0.0
    products: Products = "auto"
    seed: int = 0

    @property
    def narrow(self) -> bool:
        """Whether inputs are multiplied in float32, unless they are float64."""
        if self.products == "auto":
            return self.target == "delta" and self.reg == "fro" and self.alpha >= FLOAT32_ALPHA
        return self.products == "float32"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _CHOICES:
                known = get_args(_CHOICES[field.name])
                if value not in known:
                    hint = did_you_mean(value, known)
                    raise UserError(
                        f"--{field.name}: expected {', '.join(known)}, got {value!r}.{hint}"
                    )
            elif value is not None:
                low, high = _RANGES[field.name]
                if not (math.isfinite(value) and low <= value <= high):
                    raise UserError(f"--{field.name}: expected {low} to {high}, got {value}")
