"""What can be known before any work: that the inputs fit each other, and what the work needs."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pyext.errors import UserError
from pyext_plugins.iteris.adapters import CONFIG, WEIGHTS, Adapter, load_adapter
from pyext_plugins.iteris.base import Base
from pyext_plugins.iteris.linear import base_weight
from pyext_plugins.iteris.samples import Samples, read_samples
from pyext_plugins.iteris.settings import Settings

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """Checked inputs of a merger.

    Args:
        base: what the adapters are of.
        adapters: with names that differ.
        samples: of each adapter's task, in the same order; empty for methods without data.
        weights: how much each counts.
        memory, disk: bytes needed, roughly and from above.
    """

    base: Base
    adapters: list[Adapter]
    samples: list[Samples]
    weights: list[float]
    memory: int
    disk: int

    def identity(self) -> dict[str, str]:
        """What work on disk must have in common with this plan to go on with it."""
        adapters, samples = hashlib.sha256(), hashlib.sha256()
        for adapter, weight in zip(self.adapters, self.weights, strict=True):
            adapters.update(f"{adapter.name} {weight!r}".encode())
            for name in (CONFIG, WEIGHTS):
                adapters.update((adapter.folder / name).read_bytes())
        for own in self.samples:
            samples.update(own.path.read_bytes() + b"\0")
        return {
            "base": self.base.digest(),
            "adapters": adapters.hexdigest(),
            "samples": samples.hexdigest(),
        }


def make_plan(
    base: Path,
    adapters: Sequence[Path],
    samples: Sequence[Path],
    weights: Sequence[float],
    output: Path,
    settings: Settings,
    max_length: int,
    stream: bool = False,
) -> Plan:
    """Read and check everything but the base's weights.

    Args:
        weights: one for each adapter, or none for 1 each.
        max_length: tokens of a text, at most.
        stream: the base's weights are to stay on disk.

    Raises:
        UserError: whatever would fail later.
    """
    if not adapters:
        raise UserError("--adapter: expected at least one, got none")
    if samples and len(samples) != len(adapters):
        raise UserError(
            f"--samples: expected one file for each of {len(adapters)} adapters, got {len(samples)}"
        )
    if weights and len(weights) != len(adapters):
        raise UserError(
            f"--weight: expected one for each of {len(adapters)} adapters, got {len(weights)}"
        )
    for weight in weights:
        if not 0 < weight < float("inf"):
            raise UserError(f"--weight: expected numbers above 0, got {weight}")
    own = _named_apart([load_adapter(folder) for folder in adapters])
    _check_bases(own)
    texts = [read_samples(path) for path in samples]
    found = Base(base, own)
    sizes = _sizes(found, own, settings)
    memory = sizes.memory + (0 if stream else found.bytes)
    disk = 3 * sizes.result
    if settings.schedule == "sweep":
        disk += _states(found, sum(len(samples.texts) for samples in texts) * max_length)
    plan = Plan(found, own, texts, list(weights) or [1.0] * len(own), memory, disk)
    _check_room(plan, output)
    return plan


@dataclass(frozen=True)
class _Sizes:
    """In bytes: of the largest sums held at once, and of the result."""

    memory: int
    result: int


def _sizes(base: Base, adapters: Sequence[Adapter], settings: Settings) -> _Sizes:
    modules = dict(base.skeleton.named_modules())
    names = {name for adapter in adapters for name in adapter.modules}
    sums, result = [], 0
    for name in names:
        o, d = base_weight(modules[name]).shape
        total = sum(a.modules[name].rank for a in adapters if name in a.modules)
        rank = total if settings.target == "delta" else min(o, d)
        result += 4 * (o + d) * min(settings.rank or rank, rank)
        sums.append(8 * d * d * (3 if settings.target == "delta" else 5))
    # A sweep holds the sums of modules with one input; at most a few, as queries, keys, values.
    held = sum(sums) if settings.schedule == "iterate" else 3 * max(sums)
    return _Sizes(held, result)


def _states(base: Base, tokens: int) -> int:
    """Bytes of what a sweep keeps: the hidden states of two models, of encoder and decoder."""
    stacks = 2 if getattr(base.config, "is_encoder_decoder", False) else 1
    return 2 * stacks * tokens * 4 * int(getattr(base.config, "hidden_size", 0))


def _check_room(plan: Plan, output: Path) -> None:
    place = output.absolute().parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if plan.disk > free:
        raise UserError(
            f"--output: {place} has {free / GIB:.1f} GiB left, the work needs up to "
            f"{plan.disk / GIB:.1f}"
        )
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if plan.memory > total:
        raise UserError(
            f"--base: the work needs about {plan.memory / GIB:.1f} GiB of memory, this machine has "
            f"{total / GIB:.1f}"
        )


def _check_bases(adapters: Sequence[Adapter]) -> None:
    """Adapters that name different bases do not meet; paths to one may differ up to the last."""
    named = [adapter for adapter in adapters if adapter.base]
    for adapter in named[1:]:
        for what, one, other in (
            ("base", *(Path(own.base).name for own in (named[0], adapter))),
            ("revision of the base", *(own.config.get("revision") for own in (named[0], adapter))),
        ):
            if one != other:
                raise UserError(
                    f"--adapter: expected one {what}, {named[0].folder} is of {one!r} and "
                    f"{adapter.folder} of {other!r}"
                )


def _named_apart(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Adapters whose folders are called the same get their parents' names as well."""
    names = [adapter.name for adapter in adapters]
    apart = [
        replace(adapter, name="/".join(adapter.folder.resolve().parts[-2:]))
        if names.count(adapter.name) > 1
        else adapter
        for adapter in adapters
    ]
    for number, adapter in enumerate(apart):
        if adapter.name in [other.name for other in apart[:number]]:
            raise UserError(f"--adapter: {adapter.folder} is given twice, or one of its name is")
    return apart
