"""What a benchmark family is made of: cases, arms, claims, and the rows a run leaves.

A family is a module ``benchmarks/<family>.py`` with an object ``FAMILY``, named as an op family, or
``<op family>_routes`` where ways to one result are compared, or ``<op family>_scenes`` where many
inputs are; adding an arm to it is one function::

    @FAMILY.arm("name in the table")
    def mine(case: Case) -> Run:
        ...
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

import benchmarks
import pyext.ops
from pyext.report import Claim

Outputs = Sequence[Tensor]
Run = Callable[[], Outputs]


class Unavailable(Exception):
    """An arm cannot take part; the message is the reason, which the table and the JSON show."""


@dataclass(frozen=True)
class Work:
    """What one run has to do at least: floating-point operations, and bytes to and from memory."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Case:
    """One thing to measure: a stage of the computation on an input.

    ``tolerance`` is in place of the family's. A ``slow`` one is measured on the most threads alone,
    in no more samples than quartiles need.
    """

    input: str
    stage: str
    work: Work
    data: Any
    tolerance: float | None = None
    slow: bool = False


@dataclass(frozen=True)
class Limits:
    """The best the machine did in turn with the arms: bytes/s copied, flops/s of FMAs.

    The best, not the median: what else ran meanwhile must not make a share look larger than it is.
    """

    bandwidth: float
    fma_peak: float

    def bound_by(self, work: Work) -> tuple[float, str]:
        """The shortest time for ``work`` in seconds, and which limit sets it."""
        return max((work.flops / self.fma_peak, "FMA"), (work.bytes / self.bandwidth, "copy"))


@dataclass(frozen=True)
class Timing:
    """Seconds per run: the median, the quartiles around it, and how many runs they stand on."""

    median: float
    lower: float
    upper: float
    runs: int


@dataclass(frozen=True)
class Row:
    """What became of an arm in a case: timed, skipped for a reason, or wrong and so not timed.

    ``max_difference`` is the largest difference from the reference in any element of any output,
    over the largest element of that output; ``relative_error`` is the same of Euclidean norms, and
    the one that decides, because thresholds flip a few elements between any two implementations.
    Both are None where an output has another shape or is not finite, and for a family's limit.
    """

    input: str
    stage: str
    arm: str
    threads: int | None
    work: Work
    skipped: str | None = None
    wrong: bool = False
    max_difference: float | None = None
    relative_error: float | None = None
    timing: Timing | None = None
    limits: Limits | None = None
    times_eager: float | None = None
    times_limit: float | None = None  # the time taken, over that of the family's limit

    @property
    def limit(self) -> str | None:
        """The limit of the machine that binds this row."""
        return self.limits.bound_by(self.work)[1] if self.limits else None

    @property
    def share_of_limit(self) -> float | None:
        """The time that the family's limit takes, or the machine's allows, over the time taken."""
        if self.times_limit is not None:
            return 1 / self.times_limit
        if self.limits is None or self.timing is None:
            return None
        return self.limits.bound_by(self.work)[0] / self.timing.median

    @property
    def share_of_fma_peak(self) -> float | None:
        """The same for the operations alone, whichever limit binds."""
        if self.limits is None or self.timing is None:
            return None
        return self.work.flops / self.limits.fma_peak / self.timing.median


@dataclass(frozen=True)
class Arm:
    """One implementation: prepares a case, and where it runs.

    The limits are those of the processor; an arm on another device has no share of them.
    """

    build: Callable[[Case], Run]
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass
class Family:
    """Cases, arms and claims of one op family.

    Args:
        name: the module's.
        baseline: the arm that counts as eager in "times eager".
        seconds: for the timing of all cases together, unless the caller says otherwise.
        tolerance: on the relative error of an arm against ``expected``.
        cases: gives the cases.
        expected: gives the reference's outputs for a case.
        claims: gives the claims, from the rows.
        limit: an arm that does a part of the work which no other can do without; its results are
            not compared. The other arms' times are held against its times instead of against the
            machine's limits. Of several such arms against those of the slowest.
    """

    name: str
    baseline: str
    seconds: float
    tolerance: float
    cases: Callable[[], Iterator[Case]]
    expected: Callable[[Case], Outputs]
    claims: Callable[[Sequence[Row]], list[Claim]]
    limit: str | tuple[str, ...] | None = None
    arms: dict[str, Arm] = field(default_factory=dict)

    @property
    def limiting(self) -> tuple[str, ...]:
        """Names of the arms that are limits."""
        return (self.limit,) if isinstance(self.limit, str) else self.limit or ()

    def arm(
        self, name: str, device: Literal["cpu", "cuda"] = "cpu"
    ) -> Callable[[Callable[[Case], Run]], Callable[[Case], Run]]:
        """Register a function that prepares a case and returns what is to be timed.

        The function raises `Unavailable` where the arm cannot take part.

        Raises:
            ValueError: the name is taken.
        """

        def register(build: Callable[[Case], Run]) -> Callable[[Case], Run]:
            if name in self.arms:
                raise ValueError(f"family {self.name!r} already has an arm {name!r}")
            self.arms[name] = Arm(build, device)
            return build

        return register


def families() -> list[str]:
    """Names of the families of benchmarks."""
    modules = {module.name for module in pkgutil.iter_modules(benchmarks.__path__)}
    ops = {module.name for module in pkgutil.iter_modules(pyext.ops.__path__)}
    return sorted(modules & {op + kind for op in ops for kind in ("", "_routes", "_scenes")})


def load_family(name: str) -> Family:
    """The family ``name``.

    Raises:
        ValueError: there are no benchmarks of that name.
    """
    if name not in families():
        raise ValueError(f"no benchmarks for family {name!r}; there are: {', '.join(families())}")
    return importlib.import_module(f"benchmarks.{name}").FAMILY
