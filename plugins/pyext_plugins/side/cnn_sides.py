"""The side networks for stages of a convolutional network: maps in, tokens of the last grid out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyext.ops import side as ops
from pyext_plugins.side.batch_norm import TapsBatchNorm, over_tokens
from pyext_plugins.side.parameters import weights_and_biases
from pyext_plugins.side.sherl import TEMPERATURE

EPS = 1e-8


def tokens(image: Tensor) -> Tensor:
    """A map [B, C, h, w] as [B, h w, C]."""
    return image.flatten(2).transpose(1, 2)


def _check_grids(maps: Sequence[Tensor], method: str) -> None:
    h, w = maps[-1].shape[2:]
    for k, image in enumerate(maps):
        height, width = image.shape[2:]
        if height % h or width % w or height // h != width // w:
            raise ValueError(
                f"{method}: stage {k} ({height}x{width}) is not an integer multiple of the guide "
                f"grid {h}x{w}"
            )


class _Stages(nn.Module):
    """What both share: the projections of all stages and their BatchNorm."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(own, width) for own in channels)
        self.norm = TapsBatchNorm(len(channels), width)
        self.gate = nn.Linear(width, 1)

    def project(
        self, pooled: Sequence[Tensor], layout: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """h [B, K, N, d], its affine a, c [K, d], and the means of h, [B, K, d]."""
        weights, biases = weights_and_biases(self.down)
        h, sums, squares, means = ops.project(
            pooled, weights, biases, norm="batch", layout=layout, pool=True
        )
        a, c = self.norm(sums, squares, h.shape[0] * h.shape[2])
        return h, a, c, means


class UniptStages(_Stages):
    """UniPT's "cnn_stage": the last map guides the pooling of the others, then their mixing.

    Args:
        channels: of the K stages, the last of which guides.
        width: d, of the side network.
        out: E, channels of the result.
    """

    def __init__(self, channels: Sequence[int], width: int, out: int) -> None:
        super().__init__(channels, width)
        self.query = nn.ModuleList(nn.Linear(channels[-1], own) for own in channels[:-1])
        self.proj = nn.Linear(width, width)
        self.proj_norm = nn.BatchNorm1d(width)
        self.up = nn.Linear(width, out)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The adapted features [B, h w, E].

        Args:
            maps: K of [B, C_k, r_k h, r_k w], the last of them [B, C, h, w].

        Raises:
            ValueError: a grid is no multiple of the last one.
        """
        _check_grids(maps, "unipt")
        maps = [image.to(self.up.weight.dtype) for image in maps]
        grid = maps[-1].shape[2:]
        last = tokens(maps[-1])
        pooled = []
        for image, query in zip(maps[:-1], self.query, strict=True):
            guide = ops.up(last, query.weight, query.bias, post_act="relu")
            guide = guide.transpose(1, 2).unflatten(2, grid).contiguous()
            pooled.append(ops.guided_pool(image, guide, eps=EPS))
        h, a, c, means = self.project([*pooled, last], "layer")
        g = (h[:, -1] * a[-1] + c[-1]).to(h.dtype)
        gate = self.gate.weight[0], self.gate.bias
        alpha = ops.confidence(means[:, -1] * a[-1] + c[-1], means[:, :-1], a[:-1], c[:-1], *gate)
        z = ops.relu_attend(g, h[:, :-1], a[:-1], c[:-1], alpha=alpha, rho=1.0, eps=EPS).z
        o = g + over_tokens(self.proj_norm, ops.up(z, self.proj.weight, self.proj.bias))
        return ops.up(o, self.up.weight, self.up.bias, pre_act="relu")


class SherlStages(_Stages):
    """SHERL for convolutional stages: what the late block is to run on.

    Args:
        channels: of the K stages, of which the last, the late block's input, guides.
        width: d, of the side network.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        if len(channels) < 2:
            raise ValueError("sherl needs at least one shallow tap plus a guide")
        super().__init__(channels, width)
        self.up = nn.Linear(width, channels[-1])
        self.up_norm = nn.BatchNorm1d(channels[-1])
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """[B, C, h, w] like the last of the maps, which are as in `UniptStages`."""
        _check_grids(maps, "sherl")
        grid, hidden = maps[-1].shape[2:], maps[-1]
        maps = [image.to(self.up.weight.dtype) for image in maps]
        pooled = [ops.maxavg_pool(image, image.shape[2] // grid[0]) for image in maps]
        h, a, c, _ = self.project(pooled, "token")
        g = (h[:, -1] * a[-1] + c[-1]).to(h.dtype)
        gate = self.gate.weight[0], self.gate.bias
        merged = ops.antired(g, h[:, :-1], a[:-1], c[:-1], *gate, eps_l1=EPS, eps_l2=EPS)
        y = F.relu(over_tokens(self.up_norm, ops.up(merged.z, self.up.weight, self.up.bias)))
        y = y + torch.tanh(self.gamma / TEMPERATURE) * tokens(maps[-1])
        return y.transpose(1, 2).unflatten(2, grid).to(hidden.dtype)
