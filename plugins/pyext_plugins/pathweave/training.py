"""Training one modality: ``run(Training(name, reader, batches, settings, identity))``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pyext.errors import UserError
from pyext_plugins.pathweave.features import Batch
from pyext_plugins.pathweave.model import RANK
from pyext_plugins.pathweave.paths import Gate
from pyext_plugins.pathweave.reader import Reader
from pyext_plugins.ranges import check_ranges
from pyext_plugins.side import training as side

WEIGHT_DECAY = 0.05  # the authors'


@dataclass(frozen=True)
class Settings:
    """How to train.

    Args:
        epochs: over all rows.
        batch: rows in a step.
        step_size: AdamW's largest. The authors take 1e-5, for tens of thousands of steps.
        rank: of the adapters.
        gate: "noisy", "soft" or "none".
        reuse: whether earlier modalities' adapters are on the path.
        queries: of the Q-Former; None for as many as come with it, or else 32.
        holdout: share of the rows of each label that is only tested on.
        seed: of what starts at random, which rows are held out, their order, and the noise.

    Raises:
        UserError: a value is outside its range.
    """

    epochs: int = 10
    batch: int = 32
    step_size: float = 1e-3
    rank: int = RANK
    gate: Gate = "noisy"
    reuse: bool = True
    queries: int | None = None
    holdout: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "epochs": (1, 100_000),
            "batch": (1, 100_000),
            "rank": (1, 128),
            "holdout": (0.01, 0.9),
            "seed": (0, 2**31 - 1),
        }
        check_ranges(self, ranges)
        if self.queries is not None:
            check_ranges(self, {"queries": (1, 10_000)})
        if not 0 < self.step_size < 10:
            raise UserError(f"--step-size: expected above 0 and below 10, got {self.step_size}")


class Training(side.Training):
    """The newest modality of a reader being trained.

    Args:
        name: of the modality.
        reader: is trained, as far as it is not frozen.
        batches: trained on, all of them in each epoch, every time in another order.
        settings: how.
        identity: what else a checkpoint must have in common with this training.
    """

    def __init__(
        self,
        name: str,
        reader: Reader,
        batches: Sequence[Batch],
        settings: Settings,
        identity: dict[str, str],
    ) -> None:
        super().__init__(name, cast(Any, reader), cast(Any, batches), cast(Any, settings), identity)
        self.optimizer.param_groups[0]["weight_decay"] = WEIGHT_DECAY

    @property
    def device(self) -> torch.device:
        return cast(Reader, self.model).base.device

    def _loss(self, number: int) -> Tensor:
        loaded = cast(Batch, self.batches[number]).to(self.device)
        return F.cross_entropy(cast(Reader, self.model)(loaded.inputs), loaded.labels)

    def _step_size(self) -> float:
        """Rising linearly to the largest, then falling by half a cosine."""
        largest = cast(float, self.settings.step_size)
        rising = max(1, round(side.WARM_UP * self.steps))
        if self.step < rising:
            return largest * (self.step + 1) / rising
        done = (self.step - rising) / max(1, self.steps - rising)
        return largest * (1 + math.cos(math.pi * done)) / 2
