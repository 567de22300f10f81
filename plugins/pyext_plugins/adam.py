"""Parameters under training and what Adam knows of them, to checkpoints and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def training_state(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The parameters and all that the optimizer keeps of them, by name."""
    tensors = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"adam/{key}/{name}"] = value
    return tensors


def restore_training(
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
) -> None:
    """Take over what `training_state` gave; other tensors are left alone."""
    for full, tensor in tensors.items():
        kind, _, name = full.partition("/")
        if kind == "parameter":
            with torch.no_grad():
                parameters[name].copy_(tensor)
        elif kind == "adam":
            key, _, name = name.partition("/")
            parameter = parameters[name]
            # Adam counts its steps on the CPU.
            place = tensor if key == "step" else tensor.to(parameter.device)
            optimizer.state[parameter][key] = place
