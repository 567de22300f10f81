"""What learning one modality after the other is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class TransferAndForgetting(NamedTuple):
    """One value a step; the first has nothing to forget, and 0."""

    transfer: list[float]
    forgetting: list[float]


def transfer_and_forgetting(scores: Sequence[Sequence[float]]) -> TransferAndForgetting:
    """T and F of a sequence of modalities.

    With S(i after m) the score on modality i once m was learned: ``T_m = S(m after m)``, larger is
    better, and ``F_m = mean over i < m of S(i after i) - S(i after m)``, smaller is better. The
    paper reports both at each step; how it normalises them is not known to this project.

    Args:
        scores: row m holds S(i after m) for i = 0..m, or for more of them, which are not read.

    Raises:
        ValueError: a row is too short.
    """
    for m, row in enumerate(scores):
        if len(row) <= m:
            raise ValueError(f"scores: expected at least {m + 1} values in row {m}, got {len(row)}")
    transfer = [row[m] for m, row in enumerate(scores)]
    forgetting = [
        sum(transfer[i] - row[i] for i in range(m)) / m if m else 0.0
        for m, row in enumerate(scores)
    ]
    return TransferAndForgetting(transfer, forgetting)
