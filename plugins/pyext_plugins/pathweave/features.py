"""Features of an encoder with their labels, in a file of the user's; read as they are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyext.errors import UserError
from pyext_plugins.data.sums import sha256_of
from pyext_plugins.side.table import split


class Features:
    """``features`` [n, tokens, width], any float type, and ``labels`` [n], whole numbers from 0.

    Args:
        path: a safetensors file with both.

    Raises:
        UserError: it cannot be read, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                for name in ("features", "labels"):
                    if name not in file.keys():  # noqa: SIM118
                        raise UserError(f"--features: {path} has no tensor {name!r}")
                self.labels: Tensor = file.get_tensor("labels")
                shape = file.get_slice("features").get_shape()
                kind = file.get_slice("features").get_dtype()
        except (OSError, SafetensorError) as error:
            raise UserError(f"--features: {path} cannot be read: {error}") from error
        if len(shape) != 3 or 0 in shape or not kind.startswith(("F", "BF")):
            raise UserError(
                f"--features: expected floats [n, tokens, width] in features, got {kind} {shape}"
            )
        labels = self.labels
        if labels.is_floating_point() or list(labels.shape) != shape[:1]:
            raise UserError(
                f"--features: expected whole numbers [{shape[0]}] in labels, got {labels.dtype} "
                f"{list(labels.shape)}"
            )
        self.labels = labels.long()
        counts = self.labels.clamp(min=0).bincount()
        if int(self.labels.min()) < 0 or int((counts > 0).sum()) < 2:
            raise UserError("--features: expected labels from 0, and at least 2 different ones")
        if int(counts[counts > 0].min()) < 2:
            rare = int((counts == 1).nonzero()[0])
            raise UserError(f"--features: expected at least 2 rows of each label, {rare} has 1")
        self.tokens, self.width = shape[1:]
        self.classes = len(counts)
        self.sha256 = sha256_of(path)

    def read(self, rows: Sequence[int]) -> Tensor:
        """These rows, float32 [B, tokens, width].

        Raises:
            UserError: a number is not finite.
        """
        with safe_open(self.path, framework="pt") as file:
            stored = file.get_slice("features")
            found = torch.cat([stored[row : row + 1] for row in rows]).float()
        finite = found.flatten(1).isfinite().all(1)
        if not finite.all():
            wrong = rows[int((~finite).nonzero()[0])]
            raise UserError(f"--features: expected finite numbers, row {wrong} has others")
        return found

    def split(self, share: float, seed: int) -> tuple[list[int], list[int]]:
        """Rows to train on and rows held out; of each label the same share."""
        return split(self.labels.tolist(), share, seed)


@dataclass(frozen=True)
class Loaded:
    """What a model takes [B, tokens, width], and labels [B]."""

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Batch:
    """Some rows; their features are read by `to`."""

    features: Features
    rows: list[int]

    @property
    def labels(self) -> Tensor:
        return self.features.labels[self.rows]

    @property
    def tokens(self) -> int:
        return len(self.rows) * self.features.tokens

    def to(self, device: torch.device) -> Loaded:
        return Loaded(self.features.read(self.rows).to(device), self.labels.to(device))


def make_batches(
    features: Features, rows: Sequence[int], size: int, seed: int | None = None
) -> list[Batch]:
    """The rows in batches, in an order by ``seed`` or as they are."""
    order = list(rows)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        order = [order[i] for i in torch.randperm(len(order), generator=generator).tolist()]
    return [Batch(features, order[i : i + size]) for i in range(0, len(order), size)]
