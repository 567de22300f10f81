"""Training one arm: ``run(Training(model, batches, settings))``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor

from pyext.errors import UserError
from pyext_plugins.ranges import check_ranges
from pyext_plugins.side.arms import STEP_SIZES, Classifier
from pyext_plugins.side.cache import TapCache
from pyext_plugins.side.table import Batch
from pyext_plugins.training import BatchTraining

WARM_UP = 0.06  # of the steps
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Settings:
    """How to train.

    Args:
        epochs: over all batches.
        batch: texts in each.
        step_size: AdamW's largest; None for the arm's own.
        max_length: tokens of a text; the rest is cut off.
        holdout: share of the rows of each label that is only tested on.
        seed: of what starts at random, which rows are held out, and their order.

    Raises:
        UserError: a value is outside its range.
    """

    epochs: int = 3
    batch: int = 32
    step_size: float | None = None
    max_length: int = 128
    holdout: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "epochs": (1, 10_000),
            "batch": (1, 100_000),
            "max_length": (3, 100_000),
            "holdout": (0.01, 0.9),
            "seed": (0, 2**31 - 1),
        }
        check_ranges(self, ranges)
        if self.step_size is not None and not 0 < self.step_size < 10:
            raise UserError(f"--step-size: expected above 0 and below 10, got {self.step_size}")


@dataclass(frozen=True)
class Score:
    """On texts that were not trained on."""

    accuracy: float
    loss: float


class Training(BatchTraining):
    """An arm being trained.

    Args:
        arm: its name.
        model: is trained.
        batches: trained on, all of them in each epoch, every time in another order.
        settings: how.
        identity: what else a checkpoint must have in common with this training.
        taps: hidden states to start from, in the order of the batches; or None.
    """

    model: Classifier

    def __init__(
        self,
        arm: str,
        model: Classifier,
        batches: Sequence[Batch],
        settings: Settings,
        identity: dict[str, str],
        taps: TapCache | None = None,
    ) -> None:
        step_size = settings.step_size or STEP_SIZES[arm]
        super().__init__(
            model, settings.epochs, len(batches), step_size, settings.seed, WARM_UP, WEIGHT_DECAY
        )
        self.arm, self.batches, self.settings, self.taps = arm, batches, settings, taps
        self._identity = identity

    @property
    def samples_per_second(self) -> float:
        texts = sum(len(batch.labels) for batch in self.batches) / len(self.batches)
        return self.step * texts / self.seconds if self.seconds else 0.0

    def loss(self, number: int) -> Tensor:
        batch = self.batches[number].to(self.device)
        taps = None
        if self.taps is not None:
            taps = [tap.to(self.device) for tap in self.taps[number]]
        return F.cross_entropy(self.model(batch.inputs, taps), batch.labels)

    def tokens(self, number: int) -> int:
        return self.batches[number].tokens

    def identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this training to go on with it."""
        settings = {"method": self.arm, **asdict(self.settings)}
        return {
            "settings": json.dumps(settings),
            **self._identity,
            "torch": version("torch"),
            "transformers": version("transformers"),
        }


@torch.no_grad()
def evaluate(model: Classifier, batches: Sequence[Batch]) -> Score:
    """Accuracy and mean loss over all texts of the batches."""
    model.eval()
    right, loss, count = 0, 0.0, 0
    for batch in batches:
        own = batch.to(model.head.weight.device)
        logits = model(own.inputs)
        right += int((logits.argmax(-1) == own.labels).sum())
        loss += float(F.cross_entropy(logits, own.labels, reduction="sum"))
        count += len(own.labels)
    return Score(right / count, loss / count)
