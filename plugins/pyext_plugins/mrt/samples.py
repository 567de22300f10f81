"""Questions on pictures, with their answers: from a file to what a LLaVA model is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyext.errors import UserError
from pyext_plugins.picture import flatten, open_image
from pyext_plugins.reft.positions import IGNORED
from pyext_plugins.rows import csv_rows, json_rows, read_text

FIELDS = ("image", "question", "answer")
TEMPLATE = "USER: {image}{question} ASSISTANT:"  # LLaVA 1.5
MARKS = ("{image}", "{question}")


@dataclass(frozen=True)
class Sample:
    """One question; ``image`` is None where it is on no picture."""

    image: Path | None
    question: str
    answer: str


@dataclass(frozen=True)
class Samples:
    """All of a file; ``digest`` is its SHA-256."""

    samples: list[Sample]
    digest: str


@dataclass(frozen=True)
class Tokens:
    """A sample as the model reads it: numbers of its tokens, how many of them are the prompt."""

    ids: list[int]
    prompt: int
    image: Path | None


def read_samples(path: Path) -> Samples:
    """Read a CSV file, or JSON Lines, with image, question and answer.

    Args:
        path: ends in .csv or .tsv, or in .jsonl or .json. Pictures are looked for in its folder; an
            empty image means a question on none.

    Raises:
        UserError: the file cannot be read or is none of these, a row lacks its question or answer,
            or there is no such picture.
    """
    if path.suffix not in (".csv", ".tsv", ".jsonl", ".json"):
        raise UserError(f"--data: expected a .csv, .tsv, .jsonl or .json file, got {path}")
    text, digest = read_text("--data", path)
    if path.suffix in (".csv", ".tsv"):
        columns, rows = csv_rows("--data", path, text)
        for name in FIELDS[1:]:
            if name not in columns:
                known = ", ".join(columns) or "none"
                raise UserError(f"--data: {path} has no column {name!r}. It has: {known}")
    else:
        rows = json_rows("--data", path, text)
    samples = [_sample(path, line, row) for line, row in rows]
    if len(samples) < 2:
        raise UserError(f"--data: {path}: expected at least 2 samples, got {len(samples)}")
    return Samples(samples, digest)


def _sample(path: Path, line: int, row: dict[str, Any]) -> Sample:
    where = f"--data: {path}, line {line}"
    for name in FIELDS:
        value = row.get(name)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{where}: {name}: expected text, got {value!r}")
    image, question, answer = ((row.get(name) or "").strip() for name in FIELDS)
    for name, value in (("question", question), ("answer", answer)):
        if not value:
            raise UserError(f"{where}: no {name}")
    picture = path.parent / image if image else None
    if picture is not None and not picture.is_file():
        raise UserError(f"{where}: image: {picture} is not a file")
    return Sample(picture, question, answer)


def check_template(template: str) -> None:
    """Raises: UserError: there is no place for the image or the question in it."""
    for mark in MARKS:
        if template.count(mark) != 1:
            raise UserError(f"--template: expected {mark} once in it, got {template!r}")


class Reader:
    """Makes what a model reads of samples.

    Args:
        tokenizer, processor: of the model's folder.
        config: the model's.
        template: of a prompt.
        max_length: tokens of a sample, the answer's included.
    """

    def __init__(
        self, tokenizer: Any, processor: Any, config: Any, template: str, max_length: int
    ) -> None:
        self.tokenizer, self.processor, self.max_length = tokenizer, processor, max_length
        self.template = template
        self.image = int(config.image_token_id)
        self.word = str(tokenizer.convert_ids_to_tokens(self.image))
        vision = config.vision_config
        self.patches = (vision.image_size // vision.patch_size) ** 2
        self.patches += config.vision_feature_select_strategy == "full"
        self.filling = next(
            number
            for number in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
            if number is not None
        )

    def tokens(self, sample: Sample) -> Tokens:
        """The prompt, with as many image tokens as the picture has patches, and the answer.

        Raises:
            UserError: it is longer than ``max_length``, since an image must not be cut; or the
                model's word for an image is in the texts.
        """
        for text in (sample.question, sample.answer):
            if self.word in text:
                raise UserError(
                    f"--data: the model's word for an image is in the text {text[:40]!r}"
                )
        image = "" if sample.image is None else f"{self.word}\n"
        # The question last: it may hold anything.
        text = self.template.replace("{image}", image).replace("{question}", sample.question)
        prompt, whole = self._encode(text), self._encode(f"{text} {sample.answer}")
        answer = whole[len(prompt) :]
        if whole[: len(prompt)] != prompt:  # a word grew across the border
            answer = list(self.tokenizer(sample.answer, add_special_tokens=False)["input_ids"])
        if self.tokenizer.eos_token_id is not None:
            answer.append(self.tokenizer.eos_token_id)
        prompt = self._with_patches(prompt)
        length = len(prompt) + len(answer)
        if not answer or length > self.max_length:
            raise UserError(
                f"--max-length: expected 1 to {self.max_length} tokens with an answer, got "
                f"{length} for {sample.question[:40]!r}"
            )
        return Tokens(prompt + answer, len(prompt), sample.image)

    def _encode(self, text: str) -> list[int]:
        found = list(self.tokenizer(text)["input_ids"])
        return found[:-1] if found and found[-1] == self.tokenizer.eos_token_id else found

    def _with_patches(self, ids: list[int]) -> list[int]:
        patches = self.patches
        return [i for own in ids for i in ([own] * patches if own == self.image else [own])]

    def batch(self, samples: Sequence[Tokens], dtype: torch.dtype) -> dict[str, Tensor]:
        """Samples filled up on the right to the longest, and their pictures.

        Raises:
            UserError: a picture cannot be read.
        """
        longest = max(len(sample.ids) for sample in samples)
        ids = torch.full((len(samples), longest), self.filling)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORED)
        for row, sample in enumerate(samples):
            count = len(sample.ids)
            ids[row, :count] = torch.tensor(sample.ids)
            mask[row, :count] = 1
            labels[row, sample.prompt : count] = ids[row, sample.prompt : count]
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        pictures = [sample.image for sample in samples if sample.image is not None]
        if pictures:
            found = [
                flatten(open_image(path, "--data", upright=True), "white") for path in pictures
            ]
            arrays = [picture.numpy() for picture in found]
            pixels = self.processor(arrays, return_tensors="pt")["pixel_values"]
            batch["pixel_values"] = pixels.to(dtype)
        return batch
