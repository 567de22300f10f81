"""In which order a model runs its modules, and which of them read the same input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyext.errors import UserError
from pyext_plugins.iteris.refusals import listed
from pyext_plugins.iteris.tasks import Batch


@dataclass(frozen=True)
class Group:
    """Modules that read one and the same input, such as queries, keys and values.

    Args:
        modules: their names, in the order of their calls.
        calls: of each in one forward pass; more than 1 where layers share weights.
    """

    modules: tuple[str, ...]
    calls: int = 1

    @property
    def first(self) -> str:
        return self.modules[0]


@torch.no_grad()
def find_groups(model: nn.Module, names: Sequence[str], batch: Batch) -> list[Group]:
    """Run the model once, and see what it runs on what.

    Args:
        names: of modules.

    Returns:
        Groups in the order of their first calls: what a group reads depends on groups before it
        alone.

    Raises:
        UserError: a module was not run.
    """
    calls: list[tuple[str, Tensor]] = []

    def note(name: str):  # type: ignore[no-untyped-def]
        return lambda module, args: calls.append((name, args[0]))

    modules = dict(model.named_modules())
    hooks = [modules[name].register_forward_pre_hook(note(name)) for name in names]
    try:
        model(**batch.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    missing = sorted(set(names) - {name for name, _ in calls})
    if missing:
        raise UserError(f"the model does not run {listed(missing)} on the samples")
    # The inputs are kept until here: a freed one could leave its place to another.
    readers: dict[tuple[object, ...], dict[str, int]] = {}
    for name, x in calls:
        same = readers.setdefault(_place(x), {})
        same[name] = same.get(name, 0) + 1
    return _merged(list(readers.values()), [name for name, _ in calls])


def _merged(readers: list[dict[str, int]], calls: list[str]) -> list[Group]:
    """One group for modules that are only ever called together."""
    groups: dict[tuple[str, ...], Group] = {}
    where: dict[str, list[int]] = {}
    for place, names in enumerate(readers):
        for name in names:
            where.setdefault(name, []).append(place)
    for name in dict.fromkeys(calls):
        together = tuple(other for other in where if where[other] == where[name])
        groups.setdefault(together, Group(together, calls.count(name)))
    return list(groups.values())


def _place(x: Tensor) -> tuple[object, ...]:
    """What two tensors have in common that are the same memory in the same state."""
    return x.untyped_storage().data_ptr(), x.storage_offset(), x.shape, x.stride(), x._version
