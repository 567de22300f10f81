"""Training the editors of a LLaVA model on questions with answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch
from torch import Tensor, nn

from pyext.errors import UserError
from pyext_plugins.mrt.samples import TEMPLATE, Reader, Tokens
from pyext_plugins.ranges import check_ranges
from pyext_plugins.training import BatchTraining

WARM_UP = 0.03  # of the steps, as the authors'
WEIGHT_DECAY = 0.0


@dataclass(frozen=True)
class Settings:
    """How to train; step size and epochs are the authors'.

    Args:
        epochs: over all samples.
        batch: samples in a step.
        step_size: Adam's largest.
        max_length: tokens of a sample; longer ones are refused, since an image must not be cut.
        holdout: share of the samples that is only tested on.
        template: of a prompt.
        seed: of what starts at random, which samples are held out, and their order.

    Raises:
        UserError: a value is outside its range.
    """

    epochs: int = 3
    batch: int = 8
    step_size: float = 6e-4
    max_length: int = 1024
    holdout: float = 0.1
    template: str = TEMPLATE
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "epochs": (1, 10_000),
            "batch": (1, 100_000),
            "max_length": (1, 1_000_000),
            "holdout": (0.01, 0.9),
            "seed": (0, 2**31 - 1),
        }
        check_ranges(self, ranges)
        if not 0 < self.step_size < 10:
            raise UserError(f"--step-size: expected above 0 and below 10, got {self.step_size}")


class Training(BatchTraining):
    """Editors being trained; the batches are made once, their pictures are read at each step.

    Args:
        model: with the editors in it.
        reader: of the model's folder.
        samples: trained on.
        settings: how.
        identity: what else a checkpoint must have in common with this training.
    """

    def __init__(
        self,
        model: nn.Module,
        reader: Reader,
        samples: Sequence[Tokens],
        settings: Settings,
        identity: dict[str, str],
    ) -> None:
        self.reader, self.settings, self._identity = reader, settings, identity
        order = torch.randperm(
            len(samples), generator=torch.Generator().manual_seed(settings.seed)
        ).tolist()
        shuffled = [samples[place] for place in order]
        size = settings.batch
        self.batches = [shuffled[k : k + size] for k in range(0, len(shuffled), size)]
        super().__init__(
            model,
            settings.epochs,
            len(self.batches),
            settings.step_size,
            settings.seed,
            WARM_UP,
            WEIGHT_DECAY,
        )

    def loss(self, number: int) -> Tensor:
        return loss_of(self.model, self.reader, self.batches[number])

    def tokens(self, number: int) -> int:
        own = self.batches[number]
        return len(own) * max(len(sample.ids) for sample in own)

    @property
    def samples_per_second(self) -> float:
        count = sum(map(len, self.batches)) / len(self.batches)
        return self.step * count / self.seconds if self.seconds else 0.0

    def identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this training to go on with it."""
        return {
            "settings": json.dumps(asdict(self.settings)),
            **self._identity,
            "torch": version("torch"),
            "transformers": version("transformers"),
        }


def loss_of(model: nn.Module, reader: Reader, samples: Sequence[Tokens]) -> Tensor:
    """Mean cross-entropy over the tokens of the answers."""
    place = next(model.parameters())
    batch = reader.batch(samples, place.dtype)
    inputs = {name: tensor.to(place.device) for name, tensor in batch.items()}
    loss: Tensor = model(**inputs, use_cache=False).loss
    return loss


@torch.no_grad()
def evaluate(model: nn.Module, reader: Reader, samples: Sequence[Tokens]) -> float:
    """`loss_of` all samples, one after the other: each answer counts by its tokens."""
    model.eval()
    losses = weights = 0.0
    for sample in samples:
        count = len(sample.ids) - sample.prompt
        losses += count * float(loss_of(model, reader, [sample]))
        weights += count
    return losses / weights
