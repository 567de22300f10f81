"""Samples from JSON Lines files, as batches that a base reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyext.errors import UserError
from pyext_plugins.iteris.tasks import Batch


@dataclass(frozen=True)
class Samples:
    """Texts of one task, and for encoder-decoders what the decoder is given of each."""

    path: Path
    texts: list[str]
    targets: list[str] | None


def read_samples(path: Path) -> Samples:
    """Read lines of ``{"text": ...}`` or ``{"text": ..., "target": ...}``; other entries are left.

    Raises:
        UserError: the file cannot be read or is empty, a line is not of this form, or only some
            have a target.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"--samples: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--samples: {path} is not UTF-8 text: {error}") from error
    rows = [_row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise UserError(f"--samples: {path}: expected at least one sample, got none")
    targets = [target for _, target in rows if target is not None]
    if targets and len(targets) < len(rows):
        raise UserError(
            f"--samples: {path}: expected a target in all lines or in none, got "
            f"{len(targets)} in {len(rows)}"
        )
    return Samples(path, [text for text, _ in rows], targets or None)


def make_batches(
    samples: Samples, tokenizer: Any, size: int, max_length: int, config: Any
) -> list[Batch]:
    """Tokenise, and fill up each batch to its longest text.

    Args:
        tokenizer: the base's.
        size: texts in a batch.
        max_length: tokens of a text; the rest is cut off.
        config: the base's; says whether it has a decoder beside an encoder, and its vocabulary.

    Raises:
        UserError: a text has no tokens or one beyond the vocabulary, or a target is missing.
    """
    pairs = bool(getattr(config, "is_encoder_decoder", False))
    if pairs and samples.targets is None:
        raise UserError(
            f'--samples: {samples.path}: an encoder-decoder needs lines with "text" and "target"'
        )
    texts = _encode(tokenizer, samples, samples.texts, max_length, config)
    targets = None
    if pairs and samples.targets is not None:
        targets = _encode(tokenizer, samples, samples.targets, max_length, config)
    batches = []
    for start in range(0, len(texts), size):
        ids, mask = _padded(texts[start : start + size], tokenizer)
        inputs, masks = {"input_ids": ids, "attention_mask": mask.long()}, [mask]
        if targets is not None:
            given = [_shifted(own, config) for own in targets[start : start + size]]
            # Of another length than the texts: a layer's rows then tell whose they are.
            own_ids, own_mask = _padded(given, tokenizer, other_than=ids.shape[1])
            inputs |= {"decoder_input_ids": own_ids, "decoder_attention_mask": own_mask.long()}
            masks.append(own_mask)
        batches.append(Batch(inputs, tuple(masks)))
    return batches


def _row(path: Path, number: int, line: str) -> tuple[str, str | None]:
    where = f"--samples: {path}, line {number}"
    try:
        content = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: expected JSON: {error}") from error
    if not isinstance(content, dict) or "text" not in content:
        got = f"fields {', '.join(content)}" if isinstance(content, dict) else repr(content)[:40]
        raise UserError(f'{where}: expected {{"text": ...}}, got {got}')
    for name in ("text", "target"):
        value = content.get(name, "-")
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where}: {name}: expected text, got {value!r}")
    return content["text"], content.get("target")


def _encode(
    tokenizer: Any, samples: Samples, texts: Sequence[str], max_length: int, config: Any
) -> list[list[int]]:
    found = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    vocabulary = getattr(config, "vocab_size", None)
    for number, ids in enumerate(found, start=1):
        if not ids:
            raise UserError(f"--samples: {samples.path}, sample {number}: no tokens in it")
        if vocabulary is not None and max(ids) >= vocabulary:
            raise UserError(
                f"--samples: {samples.path}, sample {number}: token {max(ids)} is beyond the "
                f"base's vocabulary of {vocabulary}: the tokenizer is not this base's"
            )
    return list(found)


def _shifted(ids: list[int], config: Any) -> list[int]:
    """What a decoder is given that is to write ``ids``."""
    start = config.decoder_start_token_id
    return [config.pad_token_id if start is None else start, *ids[:-1]]


def _padded(
    rows: Sequence[Sequence[int]], tokenizer: Any, other_than: int = 0
) -> tuple[Tensor, Tensor]:
    """Token numbers and mask, [rows, length]."""
    length = max(map(len, rows))
    length += length == other_than
    filling = tokenizer.pad_token_id or 0
    ids = torch.full((len(rows), length), filling)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, own in enumerate(rows):
        ids[row, : len(own)] = torch.tensor(own)
        mask[row, : len(own)] = True
    return ids, mask
