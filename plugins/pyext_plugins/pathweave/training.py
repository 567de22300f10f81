"""Training one modality: ``run(Training(name, reader, batches, settings, identity))``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor

from pyext.errors import UserError
from pyext_plugins.pathweave.features import Batch
from pyext_plugins.pathweave.model import RANK
from pyext_plugins.pathweave.paths import Gate
from pyext_plugins.pathweave.reader import Reader
from pyext_plugins.ranges import check_ranges
from pyext_plugins.training import BatchTraining

WARM_UP = 0.06  # of the steps
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


class Training(BatchTraining):
    """The newest modality of a reader being trained.

    Args:
        name: of the modality.
        reader: is trained, as far as it is not frozen.
        batches: trained on, all of them in each epoch, every time in another order.
        settings: how.
        identity: what else a checkpoint must have in common with this training.
    """

    model: Reader

    def __init__(
        self,
        name: str,
        reader: Reader,
        batches: Sequence[Batch],
        settings: Settings,
        identity: dict[str, str],
    ) -> None:
        super().__init__(
            reader,
            settings.epochs,
            len(batches),
            settings.step_size,
            settings.seed,
            WARM_UP,
            WEIGHT_DECAY,
        )
        self.name, self.batches, self.settings = name, batches, settings
        self._identity = identity

    @property
    def device(self) -> torch.device:
        return self.model.base.device

    @property
    def samples_per_second(self) -> float:
        rows = sum(len(batch.labels) for batch in self.batches) / len(self.batches)
        return self.step * rows / self.seconds if self.seconds else 0.0

    def loss(self, number: int) -> Tensor:
        loaded = self.batches[number].to(self.device)
        return F.cross_entropy(self.model(loaded.inputs), loaded.labels)

    def tokens(self, number: int) -> int:
        return self.batches[number].tokens

    def identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this training to go on with it."""
        return {
            "settings": json.dumps({"modality": self.name, **asdict(self.settings)}),
            **self._identity,
            "torch": version("torch"),
            "transformers": version("transformers"),
        }

    def _step_size(self) -> float:
        """Rising linearly to the largest, then falling by half a cosine."""
        largest, rising = self._largest_step, self._rising
        if self.step < rising:
            return largest * (self.step + 1) / rising
        done = (self.step - rising) / max(1, self.steps - rising)
        return largest * (1 + math.cos(math.pi * done)) / 2
