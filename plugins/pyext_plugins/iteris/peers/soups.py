"""Model soups (Wortsman et al. 2022) of LoRAs."""

from __future__ import annotations

from collections.abc import Sequence

from pyext_plugins.iteris.peers.means import weighted_sum
from pyext_plugins.iteris.peers.registry import Modules, Problem, peer
from pyext_plugins.iteris.peers.truncation import truncate
from pyext_plugins.iteris.tasks import Task


@peer("soup-uniform", "a uniform soup: the plain mean of the updates, whatever the weights")
def uniform(problem: Problem) -> Modules:
    return truncate(_soup(problem.tasks), problem.options.rank)


@peer("soup-greedy", "a greedy soup: tasks join the mean while the metric does not fall", "score")
def greedy(problem: Problem) -> Modules:
    """From the adapter that scores best alone to the one that scores worst."""
    score = problem.score
    assert score is not None
    alone = {task.name: score(_soup([task])) for task in problem.tasks}
    first, *others = sorted(problem.tasks, key=lambda task: -alone[task.name])
    chosen, best = [first], alone[first.name]
    for task in others:
        reached = score(_soup([*chosen, task]))
        if reached >= best:
            chosen, best = [*chosen, task], reached
    return truncate(_soup(chosen), problem.options.rank)


def _soup(tasks: Sequence[Task]) -> Modules:
    return weighted_sum(tasks, [1 / len(tasks)] * len(tasks))
