"""Texts with labels, out of the files of the registry."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pyext.errors import UserError
from pyext_plugins.data.cache import path
from pyext_plugins.data.registry import find


class Texts(NamedTuple):
    """Texts, and of each the number of its label in ``label_names``."""

    texts: list[str]
    labels: list[int]
    label_names: tuple[str, ...]


def texts(name: str) -> Texts:
    """The labelled texts of ``movie-reviews``, ``sms-spam``, ``trec-questions``, ``bbc-topics`` or
    ``toxicity``, as they were published: unclean, some twice, and in the order of the file, which
    may be that of the labels. Shuffle before you split.

    Raises:
        UserError: the name is unknown or not of texts, or the data is not here (see `path`).
    """
    find(name)
    if name not in _READERS:
        raise UserError(f"{name} holds no labelled texts; those that do: {', '.join(_READERS)}")
    return _READERS[name](path(name))


def _table(file: Path, label: str, label_names: tuple[str, str]) -> Texts:
    """A CSV with the columns ``text`` and one of zeros and ones."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return Texts([row["text"] for row in rows], [int(row[label]) for row in rows], label_names)


def _movie_reviews(file: Path) -> Texts:
    return _table(file, "label", ("negative", "positive"))


def _toxicity(file: Path) -> Texts:
    return _table(file, "is_offensive", ("clean", "offensive"))


def _sms_spam(file: Path) -> Texts:
    """Some texts begin with a quote that does not close, and swallowed the lines that follow."""
    names = ("ham", "spam")
    found = Texts([], [], names)
    table = _table(file, "spam", names)
    for text, label in zip(table.texts, table.labels, strict=True):
        first, *others = re.split(r"\n(ham|spam)\t", text)
        found.texts.extend([first, *others[1::2]])
        found.labels.extend([label, *map(names.index, others[::2])])
    return found


_TREC_CODES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
_TREC_NAMES = ("abbreviation", "description", "entity", "human", "location", "number")
_TREC_QUESTIONS = 5452  # the last lines; those before them are its beginnings of 1,000 to 4,000


def _trec_questions(file: Path) -> Texts:
    """Lines ``CODE:fine question``."""
    lines = file.read_text(encoding="utf-8").split("\n")[:-1][-_TREC_QUESTIONS:]
    parts = [line.split(" ", 1) for line in lines]
    labels = [_TREC_CODES.index(code.partition(":")[0]) for code, _ in parts]
    return Texts([question for _, question in parts], labels, _TREC_NAMES)


def _bbc_topics(folder: Path) -> Texts:
    """A folder of articles for each topic."""
    names = tuple(sorted(topic.name for topic in folder.iterdir()))
    files = [file for name in names for file in sorted((folder / name).iterdir())]
    articles = [_decode(file.read_bytes()) for file in files]
    return Texts(articles, [names.index(file.parent.name) for file in files], names)


def _decode(content: bytes) -> str:
    """UTF-8, but for the one article that is in Latin-1."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


_READERS: dict[str, Callable[[Path], Texts]] = {
    "movie-reviews": _movie_reviews,
    "sms-spam": _sms_spam,
    "trec-questions": _trec_questions,
    "bbc-topics": _bbc_topics,
    "toxicity": _toxicity,
}
