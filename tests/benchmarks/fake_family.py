"""A family whose arms take made-up times on a clock that only they move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.harness import Case, Family, Outputs, Row, Run, Unavailable, Work
from pyext.report import Claim

ONE_THREAD_PEAK, BANDWIDTH = 64.0, 1024.0


@dataclass
class FakeClock:
    """Seconds that pass only in `advance`; remembers who let them pass."""

    now: float = 0.0
    log: list[str] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def advance(self, name: str, seconds: float) -> None:
        self.now += seconds
        self.log.append(name)


def cases() -> Iterator[Case]:
    yield Case(
        input="numbers", stage="double", work=Work(flops=8, bytes=32), data=torch.arange(4.0)
    )


def claims(rows: Sequence[Row]) -> list[Claim]:
    (quick,) = (row for row in rows if (row.arm, row.threads) == ("quick", 1))
    return [Claim("quick, times eager", quick.times_eager, ">=", 3)]


def make_family(clock: FakeClock) -> Family:
    """Arms: eager takes 2 s a run, quick 0.5 s on one thread and 0.25 s on two."""
    family = Family(
        name="fake",
        baseline="eager",
        seconds=8,
        tolerance=1e-3,
        cases=cases,
        expected=lambda case: [2 * case.data],
        claims=claims,
    )

    def taking(name: str, seconds: float, result: Callable[[Case], Outputs]) -> None:
        @family.arm(name)
        def build(case: Case) -> Run:
            def run() -> Outputs:
                clock.advance(
                    name, seconds / torch.get_num_threads() if name == "quick" else seconds
                )
                return result(case)

            return run

    taking("quick", 0.5, lambda case: [case.data + case.data])
    taking("eager", 2.0, lambda case: [2 * case.data])
    taking("wrong", 1.0, lambda case: [2.1 * case.data])
    taking("not finite", 1.0, lambda case: [case.data / 0])

    @family.arm("absent")
    def absent(case: Case) -> Run:
        raise Unavailable("absent is not installed")

    return family


def fake_limits(clock: Callable[[], float]) -> tuple[Callable[[], float], Callable[[], float]]:
    """Samples of a machine whose peak doubles on two threads; now and then it is disturbed."""
    assert isinstance(clock, FakeClock)
    samples = 0

    def peak() -> float:
        nonlocal samples
        samples += 1
        clock.advance("peak", 0.125)
        undisturbed = ONE_THREAD_PEAK * torch.get_num_threads()
        return undisturbed if samples > 2 else undisturbed / 4

    def copy() -> float:
        clock.advance("copy", 0.125)
        return BANDWIDTH

    return copy, peak
