"""What a peer is: a name, what it needs, and the function that merges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pyext.errors import UserError, did_you_mean
from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.tasks import Task

Modules = dict[str, LowRank]
Grams = Mapping[str, Tensor]
Score = Callable[[Mapping[str, LowRank]], float]


@dataclass(frozen=True)
class Options:
    """Settings of all peers; each reads its own.

    Args:
        weights: of the tasks, any sign; None for 1/N each.
        rank: of the result, at most; None for as much as it takes, or for the adapters' largest in
            the methods of peft that cut by an SVD.
        scale: of task arithmetic, for each update; 0.4 is what its authors take without a
            validation set.
        density: share of entries that TIES, DARE and magnitude pruning keep, in (0, 1].
        shrink: RegMean's factor on the off-diagonal entries of each Gram, in [0, 1].
        ridge: RegMean's addition to each Gram's diagonal, times its Frobenius norm; 0 in its paper.
        seed: of what DARE drops.

    Raises:
        UserError: a value is out of its range; the message begins with its name.
    """

    weights: tuple[float, ...] | None = None
    rank: int | None = None
    scale: float = 0.4
    density: float = 0.5
    shrink: float = 0.9
    ridge: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _expect("rank", self.rank, "at least 1", self.rank is None or self.rank >= 1)
        _expect("density", self.density, "in (0, 1]", 0 < self.density <= 1)
        _expect("shrink", self.shrink, "in [0, 1]", 0 <= self.shrink <= 1)
        _expect("ridge", self.ridge, "at least 0", self.ridge >= 0)

    def weights_of(self, tasks: Sequence[Task]) -> list[float]:
        """One for each adapter.

        Raises:
            UserError: there are more or fewer.
        """
        count = len(tasks)
        if self.weights is None:
            return [1 / count] * count
        _expect("weights", self.weights, f"one for each of {count}", len(self.weights) == count)
        return list(self.weights)


def _expect(name: str, value: object, wanted: str, met: bool) -> None:
    if not met:
        raise UserError(f"{name}: expected {wanted}, got {value}")


@dataclass(frozen=True)
class Problem:
    """What is merged.

    Args:
        tasks: at least one; of each, its name and the updates of its adapter are used.
        options: of the peer.
        grams: gives, for each task, X^T X / rows [d, d] by module, float64, of the inputs X that
            the model with this adapter alone sees; None where there are no samples.
        score: of merged modules, larger is better; None where there is no metric.
    """

    tasks: Sequence[Task]
    options: Options = field(default_factory=Options)
    grams: Callable[[], Sequence[Grams]] | None = None
    score: Score | None = None

    @property
    def modules(self) -> list[str]:
        """Names of the modules that any task has an update of, sorted."""
        return sorted({name for task in self.tasks for name in task.updates})


@dataclass(frozen=True)
class Peer:
    """A way to merge.

    Args:
        name: on the command line.
        summary: one line.
        merge: the function.
        needs: of the problem's optional parts: "grams" or "score"; nothing for most.
    """

    name: str
    summary: str
    merge: Callable[[Problem], Modules] = field(repr=False)
    needs: str | None = None


PEERS: dict[str, Peer] = {}


def peer(
    name: str, summary: str, needs: str | None = None
) -> Callable[[Callable[[Problem], Modules]], Callable[[Problem], Modules]]:
    """Register the function under a name."""

    def register(merge: Callable[[Problem], Modules]) -> Callable[[Problem], Modules]:
        PEERS[name] = Peer(name, summary, merge, needs)
        return merge

    return register


def find(name: str) -> Peer:
    """The peer of this name.

    Raises:
        UserError: there is none.
    """
    if name not in PEERS:
        known = ", ".join(PEERS)
        hint = did_you_mean(name, PEERS)
        raise UserError(f"no method {name!r}.{hint} There are: {known}")
    return PEERS[name]


def merge(name: str, problem: Problem) -> Modules:
    """Merge by the peer of this name.

    Returns:
        Updates by module, each on its own memory.

    Raises:
        UserError: there is no such peer, it needs what the problem does not have, or an option is
            wrong.
    """
    own = find(name)
    if not problem.tasks:
        raise UserError("tasks: expected at least one, got none")
    if own.needs == "grams" and problem.grams is None:
        raise UserError(f"{name}: expected samples, from which it takes the layers' inputs")
    if own.needs == "score" and problem.score is None:
        raise UserError(f"{name}: expected a metric, by which it chooses")
    return own.merge(problem)
