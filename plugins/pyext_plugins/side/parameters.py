"""Parameters of several layers, as the lists that the ops take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn


def weights_and_biases(layers: nn.ModuleList) -> tuple[list[Tensor], list[Tensor]]:
    """Of linear layers, in their order."""
    linear = cast(Sequence[nn.Linear], layers)
    return [layer.weight for layer in linear], [layer.bias for layer in linear]
