"""Structural similarity (Wang et al. 2004), differentiable."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

WINDOW, SIGMA = 11, 1.5  # pixels
C1, C2 = 0.01**2, 0.03**2  # of colours in [0, 1]


def ssim(picture: Tensor, target: Tensor) -> Tensor:
    """The mean similarity of two pictures, 1 where they are the same.

    The mean is over all places where the window of 11 x 11 pixels fits, and over channels.

    Args:
        picture, target: colours in [0, 1], [H, W, 3], at least 11 pixels a side.

    Returns:
        A scalar.
    """
    a, b = picture.movedim(-1, 0), target.movedim(-1, 0)
    mean_a, square_a, product = _Blur.apply(torch.stack([a, a * a, a * b])).unbind()
    mean_b, square_b = _Blur.apply(torch.stack([b, b * b])).unbind()
    both, squares = mean_a * mean_b, mean_a.square() + mean_b.square()
    likeness = (2 * both + C1) * (2 * (product - both) + C2)
    return (likeness / ((squares + C1) * (square_a + square_b - squares + C2))).mean()


class _Blur(torch.autograd.Function):
    """The window over maps [..., H, W], where it fits.

    The window is symmetric: its adjoint is itself, over the gradient with a margin of zeros.
    torch's convolution of single channels takes ten times as long, backwards a hundred times.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        return _blur(maps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _blur(pad(grad, 4 * (WINDOW - 1,)))


def _blur(maps: Tensor) -> Tensor:
    weights = [math.exp(-((i - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
    for axis in (-2, -1):
        fits = maps.shape[axis] - WINDOW + 1
        blurred = torch.zeros_like(maps.narrow(axis, 0, fits))
        for shift, weight in enumerate(weights):
            blurred.add_(maps.narrow(axis, shift, fits), alpha=weight / sum(weights))
        maps = blurred
    return maps
