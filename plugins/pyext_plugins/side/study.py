"""One table of labelled texts, one encoder, several ways to fine-tune it, and their report."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from pyext import environment
from pyext.errors import UserError
from pyext.report import Report, Value
from pyext_plugins.digest import digest
from pyext_plugins.memory import RESIDENT, SAVED, Memory
from pyext_plugins.progress import progress_bar
from pyext_plugins.session import go_on
from pyext_plugins.side.arms import LORA_RANK, Classifier, build, load_encoder, longest
from pyext_plugins.side.cache import TapCache
from pyext_plugins.side.config import SideConfig
from pyext_plugins.side.files import save_adapter, side_model
from pyext_plugins.side.model import SideModel
from pyext_plugins.side.sherl import SherlSide
from pyext_plugins.side.table import Batch, Table, make_batches, split
from pyext_plugins.side.training import Score, Settings, Training, evaluate

MIB = 2**20
LOSS = "loss {:.3f}"
DEAD = 0.5  # share of tokens without a relevant tap, above which a warning is given


@dataclass(frozen=True)
class Outcome:
    """Of one arm."""

    arm: str
    trained: int
    score: Score
    memory: Memory
    samples_per_second: float

    def row(self) -> dict[str, Value]:
        resident = self.memory.resident
        return {
            "arm": self.arm,
            "trained parameters": self.trained,
            "accuracy": round(self.score.accuracy, 4),
            "loss": round(self.score.loss, 4),
            "saved for backward (MiB)": round(self.memory.saved / MIB, 2),
            "peak resident (MiB)": None if resident is None else round(resident / MIB),
            "texts/s": round(self.samples_per_second, 1),
        }


class Study:
    """The texts, split and made into batches once, so that all arms see the same.

    Args:
        path: a folder with a transformers encoder and its tokenizer.
        table: of all texts.
        config: of the side network, whose method is the first arm.
        settings: how each arm is trained.

    Raises:
        UserError: the folder holds no encoder, it reads shorter texts, or a label has too few rows.
    """

    def __init__(self, path: Path, table: Table, config: SideConfig, settings: Settings) -> None:
        self.path, self.table, self.config, self.settings = path, table, config, settings
        train, test = split(table.labels, settings.holdout, settings.seed)
        encoder, tokenizer = load_encoder(path)
        most = longest(encoder, tokenizer)
        if settings.max_length > most:
            raise UserError(
                f"--max-length: expected at most {most} for this model, got {settings.max_length}"
            )
        self._encoder_digest = digest(encoder)
        self.train = self._batches(tokenizer, train, settings.seed)
        self.test = self._batches(tokenizer, test, None)
        self.outcomes: list[Outcome] = []
        self.cached_bytes: int | None = None

    def _batches(self, tokenizer: Any, rows: Sequence[int], seed: int | None) -> list[Batch]:
        texts, labels = self.table.texts, self.table.labels
        chosen = [texts[row] for row in rows], [labels[row] for row in rows]
        return make_batches(tokenizer, *chosen, self.settings.batch, self.settings.max_length, seed)

    def run(
        self, arm: str, folder: Path, cache: Path | None, stopped: Callable[[], bool]
    ) -> Training:
        """Train an arm, from the folder's checkpoint on if there is one; measure it if done.

        Args:
            folder: for the checkpoint. An arm that is a side network is saved there too.
            cache: for hidden states, from which a side network is then trained; or None.
            stopped: asked before every step.

        Raises:
            UserError: the config does not fit the encoder, or a folder holds what is not of this.
        """
        folder.mkdir(parents=True, exist_ok=True)
        training = self._training(arm, cache)
        go_on(training, training.steps, folder, stopped, label=arm, form=LOSS)
        if arm == self.config.method:
            save_adapter(
                training.model, folder, labels=self.table.names, max_length=self.settings.max_length
            )
        if training.done:
            self.outcomes.append(self._measure(training))
        return training

    def _training(self, arm: str, cache: Path | None) -> Training:
        encoder, _ = load_encoder(self.path)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        own = arm == self.config.method
        classes = len(self.table.names)
        config = self.config if own else None
        model = build(arm, encoder, classes, self.settings.seed, config).to(device)
        taps = None
        if own and cache is not None:
            taps = TapCache(cache, cast(SideModel, side_model(model)), self.train)
            with progress_bar("hidden states", len(self.train)) as show:
                taps.fill(lambda done: show(done, None))
            self.cached_bytes = taps.bytes
        identity = {"data": self.table.digest, "encoder": self._encoder_digest}
        if own:
            identity["config"] = str(self.config.as_json())
        # The step size that was asked for is the side network's; the others have their own.
        settings = self.settings if own else replace(self.settings, step_size=None)
        return Training(arm, model, self.train, settings, identity, taps)

    def _measure(self, training: Training) -> Outcome:
        score = evaluate(training.model, self.test)
        _warn_if_dead(training.model)
        trained = sum(parameter.numel() for parameter in training.parameters.values())
        return Outcome(
            training.arm, trained, score, training.measure(), training.samples_per_second
        )

    def report(self) -> Report:
        """On the arms that are done."""
        counts = Counter(label for batch in self.test for label in batch.labels.tolist())
        tested, trained = sum(counts.values()), sum(len(batch.labels) for batch in self.train)
        largest = max(batch.tokens for batch in self.train)
        return Report(
            title=f"{trained} texts trained on, {tested} held out, {len(self.table.names)} labels",
            rows=[outcome.row() for outcome in self.outcomes],
            facts={
                "settings": {**self.config.as_json(), **asdict(self.settings)},
                "labels": self.table.names,
                "accuracy of the most frequent label": counts.most_common(1)[0][1] / tested,
                "memory": f"of one step at the largest batch, {largest} tokens; {SAVED}; "
                f"{RESIDENT}",
                "lora": f"peft's defaults for this kind of model, rank {LORA_RANK}",
                "texts/s": "of the training steps alone, on this machine as it was; a resumed "
                "training counts all its steps",
                "hidden states on disk (MiB)": None
                if self.cached_bytes is None
                else round(self.cached_bytes / MIB, 1),
                "environment": environment.describe(),
            },
        )


def _warn_if_dead(model: Classifier) -> None:
    """SHERL alone: after an evaluation."""
    for module in model.modules():
        if isinstance(module, SherlSide) and module.dead_tokens > DEAD:
            print(
                f"sherl: no tap is relevant to {module.dead_tokens:.0%} of the tokens; they get "
                "the guide alone, and the merge learns nothing from them",
                file=sys.stderr,
            )
