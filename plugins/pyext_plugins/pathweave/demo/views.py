"""scikit-learn's digits, 1797 pictures of 8 x 8, as five modalities.

Each is a sequence of tokens that a frozen random encoder of its own takes to one width, as the
features of five pre-trained encoders would be.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VIEWS = ("image", "video", "audio", "depth", "pc")  # in the order of learning
WIDTH = 64
TRAINED_ON = 1297  # of the digits; the others are tested on
LABELLED = 400  # of a new view
POINTS = 24  # of a point cloud


@dataclass(frozen=True)
class Tokens:
    """Features [n, tokens, WIDTH] and labels [n]."""

    features: Tensor
    labels: Tensor

    def rows(self, rows: Tensor) -> Tokens:
        return Tokens(self.features[rows], self.labels[rows])


@dataclass(frozen=True)
class View:
    """A modality: the same digits are trained and tested on in all of them."""

    train: Tokens
    test: Tokens

    def labelled(self, seed: int) -> Tokens:
        generator = torch.Generator().manual_seed(seed)
        return self.train.rows(torch.randperm(TRAINED_ON, generator=generator)[:LABELLED])


def load_views() -> dict[str, View]:
    """All of them, by name."""
    from sklearn import datasets

    found = datasets.load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    pictures = torch.tensor(found.images, dtype=torch.float32)[order] / 16
    labels = torch.tensor(found.target)[order]
    views = {}
    for number, name in enumerate(VIEWS):
        features = _encode(_MAKERS[name](pictures), number, name != "pc")
        train = Tokens(features[:TRAINED_ON], labels[:TRAINED_ON])
        views[name] = View(train, Tokens(features[TRAINED_ON:], labels[TRAINED_ON:]))
    return views


@torch.no_grad()
def _encode(values: Tensor, number: int, ordered: bool) -> Tensor:
    """A random network of two layers on each token, and on its place where tokens are ordered."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(100 + number)
        places = torch.randn(values.shape[1], WIDTH)
        first, second = nn.Linear(values.shape[2], WIDTH), nn.Linear(WIDTH, WIDTH)
    values = (values - values.mean((0, 1))) / (values.std((0, 1)) + 1e-3)
    hidden = second(torch.tanh(first(values) + ordered * places))
    return F.layer_norm(hidden, (WIDTH,))


def _patches(pictures: Tensor) -> Tensor:
    """16 patches of 2 x 2."""
    return F.unfold(pictures.unsqueeze(1), 2, stride=2).mT


def _video(pictures: Tensor) -> Tensor:
    """Three frames, each moved on by a pixel; their columns, 24 of 8."""
    return torch.cat([pictures.roll(step, 2).mT for step in range(3)], 1)


def _audio(pictures: Tensor) -> Tensor:
    """The spectrum: log-magnitudes and cosines of phases, 8 rows of 16."""
    spectrum = torch.fft.fft2(pictures)
    return torch.cat([spectrum.abs().log1p(), spectrum.angle().cos()], 2)


def _depth(pictures: Tensor) -> Tensor:
    """Distances of ink from its edge, in 16 patches of 2 x 2."""
    from scipy.ndimage import distance_transform_edt

    distances = [torch.tensor(distance_transform_edt(p.numpy() > 0.25)) for p in pictures]
    return _patches(torch.stack(distances).float())


def _points(pictures: Tensor) -> Tensor:
    """24 places, more of them where there is more ink: across, down and the ink there."""
    generator = torch.Generator().manual_seed(0)
    ink = pictures.flatten(1)
    chosen = torch.multinomial(ink, POINTS, replacement=True, generator=generator)
    return torch.stack([chosen % 8, chosen // 8, 8 * ink.gather(1, chosen)], 2).float()


_MAKERS = {"image": _patches, "video": _video, "audio": _audio, "depth": _depth, "pc": _points}
