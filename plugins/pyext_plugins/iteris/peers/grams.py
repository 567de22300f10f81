"""Grams of single-task models, in one pass over each task's samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyext.ops.solve import gram_acc_
from pyext_plugins.iteris.branch import Brancher
from pyext_plugins.iteris.groups import find_groups
from pyext_plugins.iteris.tasks import Task, targeted


def collect_grams(model: nn.Module, tasks: Sequence[Task]) -> list[dict[str, Tensor]]:
    """For each task, X^T X / rows [d, d] by module, float64, of what its own model's modules read.

    Modules that read one input share one tensor.

    Args:
        model: the base; it is run, and left as it was.
        tasks: with batches.

    Raises:
        UserError: a module is not run on the samples.
    """
    names = targeted(tasks)
    brancher = Brancher(model, names)
    with brancher.hooked():
        groups = find_groups(model, names, tasks[0].batches[0].to(brancher.device))
        wanted = {group.first: group.calls for group in groups}
        found = []
        for task in tasks:
            own = _sums(brancher, task, wanted)
            found.append({name: own[group.first] for group in groups for name in group.modules})
    return found


def _sums(brancher: Brancher, task: Task, wanted: dict[str, int]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    for batch in task.batches:
        inputs = brancher.inputs(batch.to(brancher.device), task.updates, wanted)
        for name, x in inputs.items():
            d = x.shape[-1]
            if name not in sums:
                sums[name] = torch.zeros(d, d, dtype=torch.float64, device=x.device)
            gram_acc_(sums[name], x)
            rows[name] = rows.get(name, 0) + x.shape[0]
    lower = {name: gram.tril() / rows[name] for name, gram in sums.items()}
    return {name: gram + gram.tril(-1).mT for name, gram in lower.items()}
