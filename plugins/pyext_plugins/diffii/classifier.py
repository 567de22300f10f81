"""The classifier of the demo, and how it is trained on few pictures and many synthetic ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyext_plugins.diffii.digits import CLASSES, SIDE, Pictures

STEPS, BATCH, STEP_SIZE = 250, 32, 2e-3
REPLACED = 0.5  # share of originals that a synthetic picture of their class takes the place of


def make_classifier() -> nn.Module:
    """Two layers of convolutions and a linear head."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (SIDE // 2) ** 2, CLASSES),
    )


def accuracy(
    train: Pictures, synthetic: Pictures | None, test: Pictures, seed: int, steps: int
) -> float:
    """Of the last of a fixed number of steps, in percent: no step is chosen by its result."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    classifier = make_classifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=STEP_SIZE, fused=True)
    for _ in range(steps):
        rows = torch.randint(len(train), (BATCH,), generator=generator)
        images, labels = train.images[rows], train.labels[rows]
        if synthetic is not None:
            images = _replace(images, labels, synthetic, generator)
        loss = F.cross_entropy(classifier(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = classifier(test.images).argmax(-1)
    return 100 * float((found == test.labels).float().mean())


def _replace(
    images: Tensor, labels: Tensor, synthetic: Pictures, generator: torch.Generator
) -> Tensor:
    """Each picture, with probability `REPLACED`, by a random synthetic one of its label.

    Synthetic pictures are ordered by label, the same number of each.
    """
    each = len(synthetic) // CLASSES
    rows = labels * each + torch.randint(each, labels.shape, generator=generator)
    replaced = torch.rand(len(labels), generator=generator) < REPLACED
    return torch.where(replaced.view(-1, 1, 1, 1), synthetic.images[rows], images)
