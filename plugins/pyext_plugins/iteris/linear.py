"""Linear modules of a base, whether their weights are in memory or still on disk."""

from __future__ import annotations

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn


def is_linear(module: nn.Module) -> bool:
    """Whether it is one of those whose update is B A."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def base_weight(module: nn.Module) -> Tensor:
    """A linear module's weight, [o, d]; of transformers' Conv1D, its transpose."""
    with align_module_device(module):
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.detach() if isinstance(module, nn.Linear) else weight.detach().T


def base_bias(module: nn.Module) -> Tensor | None:
    """A linear module's bias, [o], if it has one."""
    with align_module_device(module):
        bias = getattr(module, "bias", None)
        return bias.detach() if isinstance(bias, Tensor) else None


def device_of(model: nn.Module) -> torch.device:
    """Where a model runs: weights that are on disk are brought to the CPU one module at a time."""
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device
