"""The data of the demo: scikit-learn's digits, 1797 pictures of 8 x 8.

1000 of them serve as a pool without labels, on which the generator is trained. Of the other 797 a
draw takes a few of each class as the labelled set; the rest is tested on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

SIDE, CLASSES = 8, 10
POOL = 1000
CAPTIONS = 20  # clusters of the pool, that stand for captions


@dataclass(frozen=True)
class Pictures:
    """Pictures [n, 1, 8, 8] in [-1, 1] and labels [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def flat(self) -> np.ndarray:
        """[n, 64]."""
        return np.asarray(self.images.flatten(1).numpy())


@dataclass(frozen=True)
class Draw:
    """A labelled set, and what is tested on."""

    shots: int
    number: int
    train: Pictures
    test: Pictures


class Digits:
    """All pictures, in one order for all draws."""

    def __init__(self) -> None:
        from sklearn import datasets

        found = datasets.load_digits()
        order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
        images = torch.tensor(found.images, dtype=torch.float32)[order].unsqueeze(1) / 8 - 1
        labels = torch.tensor(found.target)[order]
        self.pool = images[:POOL]
        self.labelled = Pictures(images[POOL:], labels[POOL:])

    def draw(self, shots: int, number: int) -> Draw:
        """``shots`` labelled pictures of each class, chosen at random by ``number``."""
        generator = torch.Generator().manual_seed(number)
        order = torch.randperm(len(self.labelled), generator=generator)
        labels = self.labelled.labels[order]
        train = torch.cat([order[labels == k][:shots] for k in range(CLASSES)])
        test = torch.cat([order[labels == k][shots:] for k in range(CLASSES)])
        images, labels = self.labelled.images, self.labelled.labels
        return Draw(
            shots,
            number,
            Pictures(images[train], labels[train]),
            Pictures(images[test], labels[test]),
        )

    @cached_property
    def _clusters(self) -> Any:
        from sklearn.cluster import KMeans

        found = KMeans(CAPTIONS, n_init=10, random_state=0)
        return found.fit(self.pool.flatten(1).numpy())

    def captions(self, images: Tensor) -> Tensor:
        """The cluster of each picture, int64, found without any label."""
        return torch.from_numpy(self._clusters.predict(images.flatten(1).numpy())).long()

    @cached_property
    def judge(self) -> Any:
        """A classifier that has seen all labelled pictures: it judges, nothing learns from it."""
        from sklearn.svm import SVC

        return SVC().fit(self.labelled.flat(), self.labelled.labels.numpy())
