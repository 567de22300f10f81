"""What a training left, to be used: ``load(folder, model).predict(["a text"])``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyext_plugins.side.arms import Classifier, build, load_encoder
from pyext_plugins.side.files import load_adapter, read_config
from pyext_plugins.side.table import make_batches


@dataclass(frozen=True)
class Trained:
    """A classifier of texts, with the names of its labels."""

    model: Classifier
    tokenizer: Any
    labels: list[str]
    max_length: int

    @torch.no_grad()
    def predict(self, texts: Sequence[str]) -> list[str]:
        """The label of each text."""
        found = []
        for text in texts:
            (batch,) = make_batches(self.tokenizer, [text], [0], 1, self.max_length, None)
            found.append(self.labels[int(self.model(batch.inputs).argmax())])
        return found


def load(folder: Path, model: Path) -> Trained:
    """The classifier that a training left in a folder.

    Args:
        model: the folder of the encoder that it was trained beside.

    Raises:
        UserError: a folder holds something else, or the encoder is another.
    """
    config, content = read_config(folder)
    encoder, tokenizer = load_encoder(model)
    labels = list(content.get("labels", []))
    classifier = build(config.method, encoder, max(len(labels), 1), 0, config)
    load_adapter(classifier, folder)
    return Trained(classifier, tokenizer, labels, int(content.get("max_length", 512)))
