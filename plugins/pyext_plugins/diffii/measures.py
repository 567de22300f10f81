"""What is measured of synthetic pictures, besides the accuracy of a classifier trained on them."""

from __future__ import annotations

import torch

from pyext_plugins.diffii.digits import CLASSES, Digits, Pictures


def faithfulness(digits: Digits, synthetic: Pictures) -> float:
    """Share that the judge takes for the class they were made for."""
    return float((digits.judge.predict(synthetic.flat()) == synthetic.labels.numpy()).mean())


def diversity(pictures: Pictures) -> float:
    """Mean distance of two pictures of a class."""
    means = []
    for k in range(CLASSES):
        own = pictures.images[pictures.labels == k].flatten(1)
        means.append(torch.pdist(own).mean())
    return float(torch.stack(means).mean())


def novelty(pictures: Pictures, train: Pictures) -> float:
    """Mean distance to the nearest labelled picture of the class."""
    nearest = []
    for k in range(CLASSES):
        own, known = (p.images[p.labels == k].flatten(1) for p in (pictures, train))
        nearest.append(torch.cdist(own, known).min(1).values)
    return float(torch.cat(nearest).mean())
