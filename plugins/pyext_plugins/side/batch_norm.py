"""BatchNorm of K taps at once, as an affine that whoever reads the projections applies."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOMENTUM, EPS = 0.1, 1e-5


class TapsBatchNorm(nn.Module):
    """Weights, biases and running statistics [K, d]."""

    def __init__(self, taps: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(taps, width))
        self.bias = nn.Parameter(torch.zeros(taps, width))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(taps, width))
        self.register_buffer("running_var", torch.ones(taps, width))

    def forward(self, sums: Tensor, squares: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The affine a, c [K, d]: from the batch in training, else from what was seen before.

        Args:
            sums, squares: [K, d], over all tokens of the batch.
            count: how many those are.

        Raises:
            ValueError: a batch of one token, in training.
        """
        if not self.training:
            mean, variance = self.running_mean, self.running_var
        else:
            if count < 2:
                raise ValueError("batch norm: expected more than 1 token in a batch, got 1")
            mean = sums / count
            variance = (squares / count - mean.square()).clamp(min=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), MOMENTUM)
                unbiased = variance * (count / (count - 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), MOMENTUM)
        a = self.weight * torch.rsqrt(variance + EPS)
        return a, self.bias - mean * a


def over_tokens(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """[B, N, d] normalised over all tokens of the batch."""
    y: Tensor = norm(x.flatten(0, 1))
    return y.view_as(x)
