"""Running mean and variance of each reward, over all batches of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyext_plugins.reward_composition.batch import Batch


class Moments:
    """Of n rewards, batch by batch (Chan, Golub and LeVeque 1979)."""

    def __init__(self, rewards: int) -> None:
        self.counts, self.means, self.squares = torch.zeros(3, rewards, dtype=torch.float64)

    def add(self, batch: Batch) -> None:
        """Take the values of a batch in; rewards without any stay as they are."""
        counts = self.counts + batch.counts
        distance = torch.where(batch.counts > 0, batch.means - self.means, 0.0)
        share = batch.counts / counts.clamp(min=1)
        self.means = self.means + distance * share
        self.squares = self.squares + batch.squares + distance.square() * self.counts * share
        self.counts = counts

    def deviation(self) -> Tensor:
        """Standard deviations (n - 1), float64, 0 of fewer than two values."""
        return (self.squares / (self.counts - 1).clamp(min=1)).sqrt()

    def state(self) -> dict[str, list[float]]:
        return {name: getattr(self, name).tolist() for name in ("counts", "means", "squares")}

    def take(self, state: Mapping[str, list[float]], to: Sequence[int], of: Sequence[int]) -> None:
        """Put the rewards ``of`` a state to the places ``to``."""
        for name in ("counts", "means", "squares"):
            getattr(self, name)[list(to)] = torch.tensor(state[name], dtype=torch.float64)[list(of)]
