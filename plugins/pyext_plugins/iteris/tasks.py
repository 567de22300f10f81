"""What is merged: for each task the updates of an adapter, and batches of its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyext_plugins.iteris.adapters import LowRank


@dataclass(frozen=True)
class Batch:
    """Samples that a model takes at once.

    Args:
        inputs: keyword arguments of the model's forward.
        masks: which places are samples' and which are filled up, bool; a layer's rows are told from
            their number to be of the mask with as many entries, or, of none, to be all samples'.
    """

    inputs: Mapping[str, Any]
    masks: tuple[Tensor, ...] = ()

    def rows(self, x: Tensor) -> Tensor:
        """A layer's input [..., d] without what was filled up, [rows, d]."""
        flat = x.reshape(-1, x.shape[-1])
        for mask in self.masks:
            if mask.numel() == flat.shape[0]:
                return flat[mask.flatten()]
        return flat

    def to(self, device: torch.device) -> Batch:
        inputs = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in self.inputs.items()
        }
        return Batch(inputs, tuple(mask.to(device) for mask in self.masks))


@dataclass(frozen=True)
class Task:
    """One of the tasks that the merged adapter is to do.

    Args:
        name: for messages.
        updates: of its adapter, by the module's name in the base.
        batches: of its samples.
        weight: how much it counts, above 0.
    """

    name: str
    updates: Mapping[str, LowRank] = field(repr=False)
    batches: Sequence[Batch] = field(repr=False)
    weight: float = 1.0


def targeted(tasks: Sequence[Task]) -> list[str]:
    """Modules that any of the tasks has an update of, sorted."""
    return sorted({name for task in tasks for name in task.updates})
