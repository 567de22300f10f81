"""Model soups (Wortsman et al. 2022) of LoRAs."""

from __future__ import annotations

from collections.abc import Sequence

from pyext_plugins.iteris.adapters import Adapter
from pyext_plugins.iteris.peers.means import weighted_sum
from pyext_plugins.iteris.peers.registry import Modules, Task, peer
from pyext_plugins.iteris.peers.truncation import truncate


@peer("soup-uniform", "a uniform soup: the plain mean of the updates, whatever the weights")
def uniform(task: Task) -> Modules:
    return truncate(_soup(task.adapters), task.options.rank)


@peer(
    "soup-greedy", "a greedy soup: adapters join the mean while the metric does not fall", "score"
)
def greedy(task: Task) -> Modules:
    """From the adapter that scores best alone to the one that scores worst."""
    score = task.score
    assert score is not None
    alone = {adapter.folder: score(_soup([adapter])) for adapter in task.adapters}
    first, *others = sorted(task.adapters, key=lambda adapter: -alone[adapter.folder])
    chosen, best = [first], alone[first.folder]
    for adapter in others:
        reached = score(_soup([*chosen, adapter]))
        if reached >= best:
            chosen, best = [*chosen, adapter], reached
    return truncate(_soup(chosen), task.options.rank)


def _soup(adapters: Sequence[Adapter]) -> Modules:
    return weighted_sum(adapters, [1 / len(adapters)] * len(adapters))
