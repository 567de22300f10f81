"""Training one arm: ``run(Training(model, batches, settings))``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor

from pyext.errors import UserError
from pyext_plugins.adam import restore_training, training_state
from pyext_plugins.ranges import check_ranges
from pyext_plugins.side.arms import STEP_SIZES, Classifier
from pyext_plugins.side.cache import TapCache
from pyext_plugins.side.memory import PeakResident, saved_by
from pyext_plugins.side.table import Batch

WARM_UP = 0.06  # of the steps
WEIGHT_DECAY = 0.01
CLIP = 1.0  # norm of the gradient
SMOOTH = 0.95  # share of the shown loss that the next step leaves
MEASURED_STEPS = 3  # over which the peak resident is taken


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


@dataclass(frozen=True)
class Memory:
    """Of one training step at the largest batch: see `side.memory` for what is counted."""

    saved: int
    resident: int | None


class Training:
    """An arm being trained.

    Args:
        arm: its name.
        model: is trained.
        batches: trained on, all of them in each epoch, every time in another order.
        settings: how.
        identity: what else a checkpoint must have in common with this training.
        taps: hidden states to start from, in the order of the batches; or None.
    """

    def __init__(
        self,
        arm: str,
        model: Classifier,
        batches: Sequence[Batch],
        settings: Settings,
        identity: dict[str, str],
        taps: TapCache | None = None,
    ) -> None:
        self.arm, self.model, self.batches, self.settings = arm, model, batches, settings
        self.taps = taps
        self._identity = identity
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), weight_decay=WEIGHT_DECAY, fused=True
        )
        self.step = 0
        self.seconds = 0.0
        self.loss_seen = 0.0

    @property
    def steps(self) -> int:
        return self.settings.epochs * len(self.batches)

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def advance(self) -> float:
        """Take one step; return the loss of late."""
        began = time.perf_counter()
        self.model.train()
        # The step alone decides, so that a training that was put down goes on the same.
        torch.manual_seed(hash((self.settings.seed, self.step)))
        self.optimizer.param_groups[0]["lr"] = self._step_size()
        loss = self._loss(self._number())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        keep = SMOOTH if self.step else 0.0
        self.loss_seen = keep * self.loss_seen + (1 - keep) * float(loss.detach())
        self.step += 1
        self.seconds += time.perf_counter() - began
        return self.loss_seen

    def measure(self) -> Memory:
        """Of a step at the largest batch; nothing is changed but gradients, which are dropped."""
        self.model.train()
        number = max(range(len(self.batches)), key=lambda i: self.batches[i].tokens)
        saved = saved_by(self.model, lambda: self._loss(number))
        peak = PeakResident(self.device)
        for _ in range(MEASURED_STEPS):
            self._loss(number).backward()
            self.optimizer.zero_grad(set_to_none=True)
        return Memory(saved, peak.bytes())

    @property
    def device(self) -> torch.device:
        return self.model.head.weight.device

    @property
    def samples_per_second(self) -> float:
        texts = sum(len(batch.labels) for batch in self.batches) / len(self.batches)
        return self.step * texts / self.seconds if self.seconds else 0.0

    def _loss(self, number: int) -> Tensor:
        batch = self.batches[number].to(self.device)
        taps = None
        if self.taps is not None:
            taps = [tap.to(self.device) for tap in self.taps[number]]
        return F.cross_entropy(self.model(batch.inputs, taps), batch.labels)

    def _number(self) -> int:
        epoch, place = divmod(self.step, len(self.batches))
        generator = torch.Generator().manual_seed(hash((self.settings.seed, epoch)))
        return int(torch.randperm(len(self.batches), generator=generator)[place])

    def _step_size(self) -> float:
        """Rising linearly to the largest, then falling linearly."""
        largest = self.settings.step_size or STEP_SIZES[self.arm]
        rising = max(1, round(WARM_UP * self.steps))
        if self.step < rising:
            return largest * (self.step + 1) / rising
        return largest * (self.steps - self.step) / max(1, self.steps - rising)

    def identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this training to go on with it."""
        settings = {"method": self.arm, **asdict(self.settings)}
        return {
            "settings": json.dumps(settings),
            **self._identity,
            "torch": version("torch"),
            "transformers": version("transformers"),
        }

    def state(self) -> dict[str, Tensor]:
        """All that the rest of the training depends on, besides step and seconds."""
        tensors = training_state(self.parameters, self.optimizer)
        return {"loss": torch.tensor(self.loss_seen, dtype=torch.float64), **tensors}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.loss_seen = float(tensors["loss"])
        restore_training(self.parameters, self.optimizer, tensors)


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
