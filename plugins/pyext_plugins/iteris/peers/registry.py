"""What a peer is: a name, what it needs, and the function that merges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pyext.errors import UserError, did_you_mean
from pyext_plugins.iteris.adapters import Adapter, LowRank

Modules = dict[str, LowRank]
Grams = Mapping[str, Tensor]
Score = Callable[[Mapping[str, LowRank]], float]


@dataclass(frozen=True)
class Options:
    """Settings of all peers; each reads its own.

    Args:
        weights: of the adapters, any sign; None for 1/N each.
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

    def weights_of(self, adapters: Sequence[Adapter]) -> list[float]:
        """One for each adapter.

        Raises:
            UserError: there are more or fewer.
        """
        count = len(adapters)
        if self.weights is None:
            return [1 / count] * count
        _expect("weights", self.weights, f"one for each of {count}", len(self.weights) == count)
        return list(self.weights)


def _expect(name: str, value: object, wanted: str, met: bool) -> None:
    if not met:
        raise UserError(f"{name}: expected {wanted}, got {value}")


@dataclass(frozen=True)
class Task:
    """What is merged.

    Args:
        adapters: at least one, of one base.
        options: of the peer.
        grams: gives, for each adapter, X^T X / rows [d, d] by module, float64, of the inputs X that
            the model with this adapter alone sees; None where there are no samples.
        score: of merged modules, larger is better; None where there is no metric.
    """

    adapters: Sequence[Adapter]
    options: Options = field(default_factory=Options)
    grams: Callable[[], Sequence[Grams]] | None = None
    score: Score | None = None

    @property
    def modules(self) -> list[str]:
        """Names of the modules that any adapter has an update of, sorted."""
        return sorted({name for adapter in self.adapters for name in adapter.modules})


@dataclass(frozen=True)
class Peer:
    """A way to merge.

    Args:
        name: on the command line.
        summary: one line.
        merge: the function.
        needs: of the task's optional parts: "grams" or "score"; nothing for most.
    """

    name: str
    summary: str
    merge: Callable[[Task], Modules] = field(repr=False)
    needs: str | None = None


PEERS: dict[str, Peer] = {}


def peer(
    name: str, summary: str, needs: str | None = None
) -> Callable[[Callable[[Task], Modules]], Callable[[Task], Modules]]:
    """Register the function under a name."""

    def register(merge: Callable[[Task], Modules]) -> Callable[[Task], Modules]:
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


def merge(name: str, task: Task) -> Modules:
    """Merge by the peer of this name.

    Returns:
        Updates by module, each on its own memory.

    Raises:
        UserError: there is no such peer, it needs what the task does not have, or an option is
            wrong.
    """
    own = find(name)
    if not task.adapters:
        raise UserError("adapters: expected at least one, got none")
    if own.needs == "grams" and task.grams is None:
        raise UserError(f"{name}: expected samples, from which it takes the layers' inputs")
    if own.needs == "score" and task.score is None:
        raise UserError(f"{name}: expected a metric, by which it chooses")
    return own.merge(task)
