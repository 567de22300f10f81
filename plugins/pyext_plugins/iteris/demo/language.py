"""The demo's second study: MiniLM, a LoRA and a head for each of five tasks, the LoRAs merged.

The heads stay outside: each reads the mean over a text's tokens of what the merged encoder gives.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyext_plugins.data import cache
from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.applied import applied
from pyext_plugins.iteris.demo.texts import Part, Sizes, TextTask, read_task
from pyext_plugins.iteris.demo.training import cached, fit, save_lora, updates_of, with_lora
from pyext_plugins.iteris.tasks import Batch, Task

MODEL = "minilm"
NAMES = ("movie-reviews", "sms-spam", "trec-questions", "bbc-topics", "toxicity")
TARGETS = ["query", "key", "value", "intermediate.dense"]
READ_AT_ONCE = 50


@dataclass(frozen=True)
class Training:
    """How a LoRA and its head are trained."""

    steps: int = 75
    batch: int = 32
    step_size: float = 2e-3
    rank: int = 8
    alpha: int = 16
    max_length: int = 48
    sizes: Sizes = field(default_factory=Sizes)


def is_here() -> bool:
    """Whether model and texts have been fetched."""
    return all(cache.is_here(name) for name in (MODEL, *NAMES))


class Study:
    """The encoder, the LoRAs, the heads, and what merged updates are worth.

    Args:
        folder: where LoRAs and heads are kept.
        training: how they are trained.
        model: an encoder of transformers, and its tokenizer; None for MiniLM.
        names: of the tasks.
    """

    def __init__(
        self,
        folder: Path,
        training: Training,
        model: tuple[nn.Module, Any] | None = None,
        names: Sequence[str] = NAMES,
    ) -> None:
        self.folder, self.training, self.names = folder, training, names
        self.encoder, self.tokenizer = model or _load()
        self.encoder.requires_grad_(False).eval()
        self.texts = {name: read_task(name, training.sizes) for name in names}
        self.updates: dict[str, dict[str, LowRank]] = {}
        self.heads: dict[str, nn.Linear] = {}
        for name in names:
            own = cached(folder / name, asdict(training), partial(self._train, name))
            self.updates[name] = updates_of(own)
            head = self._head(self.texts[name])
            head.load_state_dict(load_file(own / "head.safetensors"))
            self.heads[name] = head.requires_grad_(False)

    def tasks(self, samples: int) -> list[Task]:
        """For merging: each with as many of the texts that it was trained on, without labels."""
        return [
            Task(name, self.updates[name], self._batches(self.texts[name].train.texts[:samples]))
            for name in self.names
        ]

    def accuracies(self, modules: Mapping[str, LowRank], part: str = "test") -> list[float]:
        """Of the encoder under updates, on a part of each task's texts, in percent."""
        return [self.accuracy(name, modules, part) for name in self.names]

    def alone(self) -> list[float]:
        """Of each LoRA on its own task."""
        return [self.accuracy(name, self.updates[name]) for name in self.names]

    def score(self, modules: Mapping[str, LowRank]) -> float:
        """Mean accuracy on the texts to choose by."""
        return mean(self.accuracies(modules, "validate"))

    @torch.no_grad()
    def accuracy(self, name: str, modules: Mapping[str, LowRank], part: str = "test") -> float:
        """On a part of one task's texts, in percent."""
        own: Part = getattr(self.texts[name], part)
        order = sorted(range(len(own.texts)), key=lambda row: len(own.texts[row]))
        right = 0
        with applied(self.encoder, modules):
            for batch, rows in zip(
                self._batches([own.texts[row] for row in order]),
                torch.tensor(order).split(READ_AT_ONCE),
                strict=True,
            ):
                found = self.heads[name](_pooled(self.encoder, batch.inputs)).argmax(-1)
                right += int((found == torch.tensor(own.labels)[rows]).sum())
        return 100 * right / len(own.texts)

    def _batches(self, texts: Sequence[str]) -> list[Batch]:
        parts = [texts[i : i + READ_AT_ONCE] for i in range(0, len(texts), READ_AT_ONCE)]
        inputs = [self._encode(part) for part in parts]
        return [Batch(own, (own["attention_mask"].bool(),)) for own in inputs]

    def _encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        length = self.training.max_length
        return dict(
            self.tokenizer(
                list(texts),
                truncation=True,
                max_length=length,
                padding="longest",
                return_tensors="pt",
            )
        )

    def _head(self, task: TextTask) -> nn.Linear:
        config: Any = self.encoder.config
        return nn.Linear(config.hidden_size, len(task.names))

    def _train(self, name: str, folder: Path) -> None:
        torch.manual_seed(0)
        own, task = self.training, self.texts[name]
        model = with_lora(copy.deepcopy(self.encoder), own.rank, own.alpha, TARGETS)
        head = self._head(task)
        labels = torch.tensor(task.train.labels)

        def loss(rows: Tensor) -> Tensor:
            inputs = self._encode([task.train.texts[row] for row in rows.tolist()])
            return F.cross_entropy(head(_pooled(model, inputs)), labels[rows])

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        trained += head.parameters()
        fit(trained, loss, len(labels), own.steps, own.batch, own.step_size, seed=0)
        save_lora(model, folder)
        weights = {name: value.detach() for name, value in head.state_dict().items()}
        save_file(weights, folder / "head.safetensors")


def _pooled(encoder: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The mean over the tokens that count, [B, d]."""
    hidden: Tensor = encoder(**inputs).last_hidden_state
    counts = inputs["attention_mask"].to(hidden.dtype).unsqueeze(-1)
    return (hidden * counts).sum(1) / counts.sum(1)


def _load() -> tuple[nn.Module, Any]:
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = cache.path(MODEL)
    encoder = AutoModel.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    return encoder, AutoTokenizer.from_pretrained(path, local_files_only=True)
