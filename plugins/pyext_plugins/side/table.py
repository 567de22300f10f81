"""Labelled texts from a CSV file, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyext.errors import UserError, did_you_mean
from pyext_plugins.rows import csv_rows, read_text

ALIKE = 16  # batches among whose texts those of like lengths are put together


@dataclass(frozen=True)
class Table:
    """Labelled texts. ``labels`` are numbers into ``names``, ``digest`` the file's SHA-256."""

    texts: list[str]
    labels: list[int]
    names: list[str]
    digest: str


def read_table(path: Path, text_column: str, label_column: str) -> Table:
    """Read a CSV file with a line of column names (or, called .tsv, one with tabs).

    Raises:
        UserError: there is no such file or column, a row lacks its text or label, or all labels are
            the same.
    """
    content, digest = read_text("--data", path)
    columns, rows = csv_rows("--data", path, content)
    for option, column in (("--text-column", text_column), ("--label-column", label_column)):
        if column not in columns:
            hint = did_you_mean(column, columns)
            known = ", ".join(columns) or "none"
            raise UserError(f"{option}: {path} has no column {column!r}.{hint} It has: {known}")
    texts, labels = [], []
    for line, row in rows:
        text, label = ((row[column] or "").strip() for column in (text_column, label_column))
        if not text or not label:
            lacking = text_column if not text else label_column
            raise UserError(f"--data: {path}, line {line}: no {lacking}")
        texts.append(text)
        labels.append(label)
    names = sorted(set(labels))
    if len(names) < 2:
        raise UserError(
            f"--label-column: expected at least 2 different labels in {label_column!r}, got "
            f"{len(names)} in {len(labels)} rows"
        )
    numbers = {name: number for number, name in enumerate(names)}
    return Table(texts, [numbers[label] for label in labels], names, digest)


def split(labels: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Rows to train on and rows held out: of each label the same share, at least one row each.

    Raises:
        UserError: a label has fewer than two rows.
    """
    generator = torch.Generator().manual_seed(seed)
    train, held_out = [], []
    for label in sorted(set(labels)):
        rows = [row for row, own in enumerate(labels) if own == label]
        if len(rows) < 2:
            raise UserError("--data: expected at least 2 rows of each label, one has 1")
        order = torch.randperm(len(rows), generator=generator).tolist()
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held_out += [rows[i] for i in order[:count]]
        train += [rows[i] for i in order[count:]]
    return sorted(train), sorted(held_out)


@dataclass(frozen=True)
class Batch:
    """Sentences of one length, filled up: what a model takes, and the labels [B]."""

    inputs: dict[str, Tensor]
    labels: Tensor

    @property
    def tokens(self) -> int:
        """Places for tokens, the filled ones included."""
        return self.labels.numel() * self.inputs["input_ids"].shape[1]

    def to(self, device: torch.device) -> Batch:
        moved = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Batch(moved, self.labels.to(device))


def make_batches(
    tokenizer: Any,
    texts: Sequence[str],
    labels: Sequence[int],
    size: int,
    max_length: int,
    seed: int | None,
) -> list[Batch]:
    """Batches of texts of like lengths, each filled up to its longest.

    The batches stay what they are and only their order changes from epoch to epoch: hidden states
    kept for a batch are then those that the backbone would compute again, bit by bit.

    Args:
        tokenizer: of transformers.
        seed: of which texts meet; None to sort all by length.
    """
    lengths = [len(ids) for ids in _encode(tokenizer, texts, max_length)["input_ids"]]
    order = list(range(len(texts)))
    span = len(texts)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(texts), generator=generator).tolist()
        span = ALIKE * size
    rows: list[int] = []
    for start in range(0, len(order), span):
        rows += sorted(order[start : start + span], key=lambda row: lengths[row])
    batches = []
    for start in range(0, len(rows), size):
        own = rows[start : start + size]
        inputs = _encode(tokenizer, [texts[row] for row in own], max_length, padding="longest")
        tensors = {name: torch.tensor(value) for name, value in inputs.items()}
        batches.append(Batch(tensors, torch.tensor([labels[row] for row in own])))
    return batches


def _encode(tokenizer: Any, texts: Sequence[str], max_length: int, **more: Any) -> dict[str, Any]:
    return dict(tokenizer(list(texts), truncation=True, max_length=max_length, **more))
