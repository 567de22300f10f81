"""The demo: a batch of many adapters through peft's loop and through the ops.

A model of Llama's form is started at random, since neither time nor memory asks what it says.
Shown: that outputs are the same, what the adapters' part takes by itself, what a whole forward
takes, how much of that is the base model, and the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyext import environment
from pyext.report import Claim, Report, Value
from pyext_plugins.multilora.speed import (
    ADAPTERS,
    BASE,
    OPS,
    PEFT,
    Pair,
    Size,
    Timed,
    difference,
    peak_bytes,
    times,
)

# Of the largest logit: float32's epsilon is 1.2e-7, and sums of up to 2816 products, through all
# layers, are added up in another order.
TOLERANCE = 1e-5
MEMORY = 1.001  # whose rows are whose, and scalings: a few hundred bytes beside megabytes
MIND = [
    "A whole forward is mostly the base model, which no adapter speeds up: five times is claimed "
    "of the adapters' part.",
    "Adapters alone: every LoRA layer once, with the outputs of its base layer given. What peft "
    "does once a call, which both have, is in the whole forward; generating is one call.",
    "A training step is of all adapters: with peft one after the other, since it refuses batches "
    "of several in training.",
    "Memory: what the adapters' parameters keep alive, and what torch has allocated in a forward "
    "at its peak.",
]


def demo(output: Path) -> Report:
    """16 adapters and 64 sequences. Writes nothing of its own."""
    return run(Size())


def run(size: Size) -> Report:
    """The comparison at some size."""
    pair = Pair(size)
    apart = {length: difference(pair, length) for length in size.lengths}
    peaks = {arm: peak_bytes(pair, arm) for arm in (PEFT, OPS)}
    held = {arm: pair.adapter_bytes(arm) for arm in (PEFT, OPS)}
    timed = times(pair)
    for sentence in MIND:
        print(f"mind: {sentence}")
    return Report(
        title=f"{size.adapters} LoRAs in a batch of {size.sequences} sequences",
        rows=_rows(timed),
        claims=[
            Claim(
                "largest difference of a logit, over the largest logit",
                max(worst / largest for worst, largest in apart.values()),
                "<=",
                TOLERANCE,
            ),
            *(
                Claim(f"{ADAPTERS}, {_name(length)}: times faster, least", least, ">=", 5)
                for length, least in _least(timed, size.lengths).items()
            ),
            Claim(
                "memory, over that of peft's loop",
                (peaks[OPS] + held[OPS]) / (peaks[PEFT] + held[PEFT]),
                "<=",
                MEMORY,
            ),
        ],
        facts={
            "model": size.__dict__,
            "adapters' parameters (bytes)": held,
            f"peak of a forward, {_name(max(size.lengths))} (bytes)": peaks,
            "mind": MIND,
            "environment": environment.describe(),
        },
    )


def _name(length: int) -> str:
    return f"{length} token{'s' if length > 1 else ''} each"


def _grouped(timed: Sequence[Timed]) -> dict[tuple[int, str, int], dict[str, float]]:
    """Medians in seconds by arm, of each batch, part and number of threads."""
    groups: dict[tuple[int, str, int], dict[str, float]] = {}
    for one in timed:
        groups.setdefault((one.length, one.part, one.threads), {})[one.arm] = one.median
    return groups


def _rows(timed: Sequence[Timed]) -> list[dict[str, Value]]:
    return [
        {
            "batch": _name(length),
            "what": part,
            "threads": threads,
            f"{PEFT} (ms)": round(1e3 * own[PEFT], 1),
            f"{OPS} (ms)": round(1e3 * own[OPS], 1),
            "times faster": round(own[PEFT] / own[OPS], 2),
            f"{BASE} (ms)": round(1e3 * own[BASE], 1) if BASE in own else None,
        }
        for (length, part, threads), own in _grouped(timed).items()
    ]


def _least(timed: Sequence[Timed], lengths: Sequence[int]) -> dict[int, float]:
    """How many times faster the adapters' part is, at the number of threads where it is least."""
    groups = _grouped(timed)
    return {
        length: min(
            own[PEFT] / own[OPS]
            for (other, part, _), own in groups.items()
            if other == length and part == ADAPTERS
        )
        for length in lengths
    }
