"""The demo's study: all arms on several labelled sets, several classifiers each."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor

from pyext_plugins.diffii import arms, measures
from pyext_plugins.diffii.arms import ARMS, STRENGTHS
from pyext_plugins.diffii.classifier import accuracy
from pyext_plugins.diffii.digits import CLASSES, Digits, Draw, Pictures
from pyext_plugins.diffii.generator import NULL, make_scheduler, taught
from pyext_plugins.diffii.pixels import PixelModel

LABELS = {str(k): k for k in range(CLASSES)}


@dataclass(frozen=True)
class Size:
    """Of the study.

    Args:
        draws: shots and number of each labelled set.
        seeds: classifiers of each arm on each draw.
    """

    draws: tuple[tuple[int, int], ...] = ((5, 0), (5, 1), (2, 2), (2, 3), (2, 4), (2, 5))
    seeds: int = 3
    concept_steps: int = 120
    inversion_steps: int = 40
    steps: int = 20
    classifier_steps: int = 250


@dataclass
class Arm:
    """What was measured of an arm: lists have an entry for each draw."""

    accuracies: list[list[float]] = field(default_factory=list)  # in percent, by draw and seed
    faithfulness: list[float] = field(default_factory=list)
    diversity: list[float] = field(default_factory=list)
    novelty: list[float] = field(default_factory=list)
    norm_ratio: list[float] = field(default_factory=list)

    def by_draw(self) -> list[float]:
        return [statistics.mean(found) for found in self.accuracies]


@dataclass
class Inverted:
    """The inversions of a draw."""

    draw: Draw
    model: PixelModel
    inversions: Tensor  # [n, 1, 8, 8], in the order of the draw's labelled pictures
    error: float  # mean square error of the pictures that they are denoised to


class Study:
    """Measures draw by draw.

    Args:
        unet: the trained generator, not changed.
        folder: for what it is taught of each labelled set.
    """

    def __init__(self, digits: Digits, unet: UNet2DModel, size: Size, folder: Path) -> None:
        self.digits, self.unet, self.size, self.folder = digits, unet, size, folder
        self.arms = {arm: Arm() for arm in ARMS}
        self.without_concepts: float | None = None  # faithfulness of circle, on the first draw
        self.errors: list[float] = []
        self.inversion_norms: list[float] = []
        self.cosines: list[float] = []
        self.first: Inverted | None = None
        self.shown: dict[str, Pictures] = {}

    def work(self) -> Iterator[str]:
        """Do it, and say after each part what was done."""
        for shots, number in self.size.draws:
            draw = self.digits.draw(shots, number)
            inverted = self._invert(draw)
            yield "inversions"
            for arm in ARMS:
                synthetic = self._synthetic(arm, inverted)
                self._measure(arm, draw, synthetic)
                yield arm
            if self.first is None:
                self.first = inverted

    @property
    def parts(self) -> int:
        return len(self.size.draws) * (len(ARMS) + 1)

    def gains(self, better: str, worse: str) -> list[float]:
        """Differences of accuracy in points, a draw each."""
        pairs = zip(self.arms[better].by_draw(), self.arms[worse].by_draw(), strict=True)
        return [first - second for first, second in pairs]

    def _model(self, unet: UNet2DModel, labels: dict[str, int]) -> PixelModel:
        model = PixelModel(unet, make_scheduler().config, labels, NULL)
        model.set_steps(self.size.steps, self.size.inversion_steps)
        return model

    def _invert(self, draw: Draw) -> Inverted:
        unet = taught(self.unet, self.digits, draw, self.size.concept_steps, self.folder)
        model = self._model(unet, LABELS)
        names = [str(k) for k in draw.train.labels.tolist()]
        images = draw.train.images
        inversions = model.invert(images, names)
        guide = arms.Guide(names, [""] * len(names), 0.0, 1.0)
        error = float((model.denoise(inversions, guide) - images).square().mean())
        self.errors.append(error)
        self.inversion_norms.append(arms.norm_ratio(inversions))
        units = torch.nn.functional.normalize(inversions.flatten(1), dim=1)
        units = units.view(CLASSES, draw.shots, -1)
        first, second = torch.triu_indices(draw.shots, draw.shots, 1)
        self.cosines += (units[:, first] * units[:, second]).sum(-1).flatten().tolist()
        return Inverted(draw, model, inversions, error)

    def _synthetic(self, arm: str, inverted: Inverted) -> Pictures | None:
        draw, model = inverted.draw, inverted.model
        if arm == "none":
            return None
        if arm == "shift":
            return arms.shifted(draw)
        if arm in STRENGTHS:
            return arms.real_guidance(model, STRENGTHS[arm], draw)
        x = arms.starts(arm, draw, inverted.inversions)
        self.arms[arm].norm_ratio.append(arms.norm_ratio(x))
        if arm == "circle" and self.first is None:
            unaware = self._model(model.unet, dict.fromkeys(LABELS, NULL))
            found = arms.generate(unaware, x, draw)
            self.without_concepts = measures.faithfulness(self.digits, found)
        return arms.generate(model, x, draw)

    def _measure(self, arm: str, draw: Draw, synthetic: Pictures | None) -> None:
        own, size = self.arms[arm], self.size
        seeds = range(size.seeds)
        test, steps = draw.test, size.classifier_steps
        own.accuracies.append(
            [accuracy(draw.train, synthetic, test, seed, steps) for seed in seeds]
        )
        shown = synthetic or draw.train
        own.faithfulness.append(measures.faithfulness(self.digits, shown))
        own.diversity.append(measures.diversity(shown))
        if synthetic is not None:
            own.novelty.append(measures.novelty(synthetic, draw.train))
        if self.first is None:
            self.shown[arm] = shown
