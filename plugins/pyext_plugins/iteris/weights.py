"""How much each task counts in a layer."""

from __future__ import annotations

from torch import Tensor, nn

from pyext.errors import UserError
from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.linear import base_weight
from pyext_plugins.iteris.settings import Settings
from pyext_plugins.iteris.statistics import Statistics
from pyext_plugins.iteris.tasks import Task

CHUNK = 1024  # rows of a weight that are in float64 at a time


def task_weight(
    module: nn.Module, name: str, task: Task, statistics: Statistics, settings: Settings
) -> float:
    """How much the squared error of a task counts in a module: lambda of the paper.

    Raises:
        UserError: the module gives zero for all samples of the task, which would count infinitely.
    """
    if settings.weighting == "one":
        return task.weight
    update = task.updates.get(name)
    if settings.weighting == "delta" and update is not None:
        size, energy = _delta_norm(update), float(statistics.delta_energy(name))
    else:
        size = full_norm(base_weight(module), update)
        energy = float(statistics.output_energy(name))
    if not energy > 0:
        raise UserError(f"{task.name}: {name} gives zero on all samples")
    return task.weight * size / energy


def full_norm(weight: Tensor, update: LowRank | None) -> float:
    """Squared Frobenius norm of a weight with its update, never put together."""
    total = sum(float(rows.double().square().sum()) for rows in weight.split(CHUNK))
    if update is None:
        return total
    a, b = update.a.to(weight.device), update.b.to(weight.device).double()
    mixed = sum(
        ((part.T @ rows.double()) * a).sum()
        for part, rows in zip(b.split(CHUNK), weight.split(CHUNK), strict=True)
    )
    return total + 2 * update.scale * float(mixed) + _delta_norm(update)


def _delta_norm(update: LowRank) -> float:
    a, b = update.a.double(), update.b.double()
    return update.scale**2 * float(((b.T @ b) * (a @ a.T)).sum())
