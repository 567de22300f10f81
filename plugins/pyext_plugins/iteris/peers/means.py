"""Sums of updates, exact: factors side by side, and cut to a rank only if one is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.peers.registry import Modules, Problem, peer
from pyext_plugins.iteris.peers.truncation import truncate
from pyext_plugins.iteris.tasks import Task


def weighted_sum(tasks: Sequence[Task], weights: Sequence[float]) -> Modules:
    """sum_i w_i s_i B_i A_i of every module that any adapter has, of rank sum_i r_i at most.

    Float64 where factors are; else float32. An adapter without the module adds nothing to it, and
    one of weight 0 nothing to any.
    """
    found: Modules = {}
    for module in sorted({name for task in tasks for name in task.updates}):
        parts = [
            (task.updates[module], weight)
            for task, weight in zip(tasks, weights, strict=True)
            if module in task.updates and weight != 0
        ]
        if parts:
            found[module] = concatenated(parts)
    return found


def concatenated(parts: Sequence[tuple[LowRank, float]]) -> LowRank:
    """The weighted sum of updates of one weight."""
    dtype = torch.promote_types(torch.float32, parts[0][0].a.dtype)
    a = torch.cat([update.a.to(dtype) for update, _ in parts])
    b = torch.cat([(weight * update.scale) * update.b.to(dtype) for update, weight in parts], dim=1)
    return LowRank(a, b)


@peer("mean", "the weighted mean of the updates")
def mean(problem: Problem) -> Modules:
    weights = problem.options.weights_of(problem.tasks)
    return truncate(weighted_sum(problem.tasks, weights), problem.options.rank)


@peer("task-arithmetic", "the sum of the updates, scaled (Ilharco et al. 2023)")
def task_arithmetic(problem: Problem) -> Modules:
    weights = [problem.options.scale] * len(problem.tasks)
    return truncate(weighted_sum(problem.tasks, weights), problem.options.rank)
