"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation and with ReLU6), to be tapped.

Modules bear the names of the state dict that `pyext data` brings as ``efficientnet-lite0``.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from pyext.errors import UserError, one_line
from pyext_plugins.pickled import read_tensors

SIDE = 224  # pixels of the pictures it was trained on
STEM, HEAD = 32, 1280
# The last blocks of the four stages, at strides 4, 8, 16 and 32.
STAGES = tuple(f"_blocks.{number}" for number in (2, 4, 10, 15))


class Group(NamedTuple):
    """Blocks of one kind; the first of them has the stride."""

    kernel: int
    stride: int
    expand: int
    channels: int
    repeats: int


GROUPS = (
    Group(3, 1, 1, 16, 1),
    Group(3, 2, 6, 24, 2),
    Group(5, 2, 6, 40, 2),
    Group(3, 2, 6, 80, 3),
    Group(5, 1, 6, 112, 3),
    Group(5, 2, 6, 192, 4),
    Group(3, 1, 6, 320, 1),
)


class SameConv(nn.Conv2d):
    """A convolution that fills up as TensorFlow does: with stride 2, more after than before."""

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        fill = [max((-size) % stride + kernel - stride, 0) for size in input.shape[:1:-1]]
        return super().forward(F.pad(input, [n for f in fill for n in (f // 2, f - f // 2)]))


def _conv(before: int, after: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> SameConv:
    return SameConv(before, after, kernel, stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Widen, convolve each channel, narrow; added to the input where the shape stays."""

    def __init__(self, before: int, group: Group, stride: int) -> None:
        super().__init__()
        wide = before * group.expand
        self.widens, self.stays = group.expand > 1, stride == 1 and before == group.channels
        if self.widens:
            self._expand_conv, self._bn0 = _conv(before, wide), _norm(wide)
        self._depthwise_conv = _conv(wide, wide, group.kernel, stride, wide)
        self._bn1 = _norm(wide)
        self._project_conv, self._bn2 = _conv(wide, group.channels), _norm(group.channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.widens else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.stays else y


class EfficientNetLite0(nn.Module):
    """Pictures [B, 3, H, W], (RGB bytes - 127) / 128, to features [B, 1280]."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _conv(3, STEM, 3, 2), _norm(STEM)
        blocks, before = [], STEM
        for group in GROUPS:
            for number in range(group.repeats):
                blocks.append(Block(before, group, 1 if number else group.stride))
                before = group.channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _conv(before, HEAD), _norm(HEAD)
        self._fc = nn.Linear(HEAD, 1000)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(pixel_values)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    def classify(self, pixel_values: Tensor) -> Tensor:
        """Logits of ImageNet's 1000 classes."""
        logits: Tensor = self._fc(self(pixel_values))
        return logits


def load(path: Path) -> EfficientNetLite0:
    """The network with the weights of a state dict.

    Of the file only tensors by name are accepted.

    Raises:
        ValueError: the file is no such state dict, or one of another network.
    """
    try:
        state = read_tensors(path)
    except UserError as error:
        raise ValueError(f"path: expected a state dict of tensors, {path} is none") from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise ValueError(f"path: expected tensors by name and nothing else, {path} has more")
    model = EfficientNetLite0()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"path: {path} is of another network: {one_line(error)}") from error
    return model.eval()
