"""The demo's ways to make more pictures of a labelled set, all of them five for each original."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyext.ops import circle
from pyext_plugins.diffii.circles import draw_angles, draw_pairs
from pyext_plugins.diffii.digits import CLASSES, Draw, Pictures
from pyext_plugins.diffii.models import Guide
from pyext_plugins.diffii.pixels import PixelModel

EXPANSION = 5
GUIDANCE = 2.0
STRENGTHS = {"real guidance 0.5": 0.5, "real guidance 0.75": 0.75}
NORMS = {"linear": "lerp", "slerp": "slerp", "circle": "paper"}
STARTS = ("noise", *NORMS)  # arms that differ in where denoising starts, and in nothing else
ARMS = ("none", "shift", *STRENGTHS, *STARTS)


def shifted(draw: Draw) -> Pictures:
    """Originals moved by a pixel, to a random one of the four sides."""
    generator = torch.Generator().manual_seed(draw.number)
    images = draw.train.images.repeat_interleave(EXPANSION, 0)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    side = images.shape[-1]
    corners = torch.tensor([(0, 1), (2, 1), (1, 0), (1, 2)])
    chosen = corners[torch.randint(4, (len(images),), generator=generator)].tolist()
    moved = [p[:, y : y + side, x : x + side] for p, (y, x) in zip(padded, chosen, strict=True)]
    return Pictures(torch.stack(moved), draw.train.labels.repeat_interleave(EXPANSION))


def starts(arm: str, draw: Draw, inversions: Tensor) -> Tensor:
    """Where an arm of `STARTS` begins to denoise, [n, 1, 8, 8], ordered by class.

    Args:
        inversions: of the labelled pictures, in their order, which is by class.
    """
    generator = torch.Generator().manual_seed(draw.number)
    count = draw.shots * EXPANSION
    if arm == "noise":
        return torch.randn(count * CLASSES, *inversions.shape[1:], generator=generator)
    pairs = [k * draw.shots + draw_pairs(draw.shots, count, generator) for k in range(CLASSES)]
    angles = draw_angles(NORMS[arm], count * CLASSES, generator)
    return circle.interp(inversions, torch.cat(pairs), angles[:, None], norm=NORMS[arm]).z[:, 0]


def generate(model: PixelModel, x: Tensor, draw: Draw) -> Pictures:
    """Denoise points that are ordered by class."""
    labels = draw.train.labels.repeat_interleave(EXPANSION)
    return _clamped(model.denoise(x, _guide(labels)), labels)


def real_guidance(model: PixelModel, strength: float, draw: Draw) -> Pictures:
    """Originals with noise added up to a share of the timesteps, denoised from there (SDEdit)."""
    generator = torch.Generator().manual_seed(draw.number)
    images = draw.train.images.repeat_interleave(EXPANSION, 0)
    labels = draw.train.labels.repeat_interleave(EXPANSION)
    timesteps = model.scheduler.timesteps.tolist()
    start = timesteps[round((1 - strength) * len(timesteps))]
    noise = torch.randn(images.shape, generator=generator)
    at = torch.full((len(images),), start)
    noisy = model.scheduler.add_noise(images, noise, at)  # type: ignore[arg-type]
    return _clamped(model.denoise(noisy, _guide(labels), start=start), labels)


def _guide(labels: Tensor) -> Guide:
    return Guide([str(k) for k in labels.tolist()], [""] * len(labels), 0.0, GUIDANCE)


def _clamped(images: Tensor, labels: Tensor) -> Pictures:
    return Pictures(images.clamp(-1, 1), labels)


def norm_ratio(x: Tensor) -> float:
    """Mean of |x| / sqrt(D), which is 1 for standard normal numbers."""
    return float(x.flatten(1).norm(dim=1).mean()) / math.sqrt(x[0].numel())
