"""Blocks of a model, which a pass need not run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from pyext_plugins.iteris.states import Output, State


class Reached(Exception):
    """All that was wanted of a forward pass is there."""


class Blocks:
    """The members of those of a model's outermost lists that hold modules of interest.

    In a pass that goes on from a state, blocks that are done are not run: each is taken to give
    what the last one of its list gave. The rest of the model, between lists and before them, is
    run. This comes to the same where each block reads of its list what the one before gave alone.

    Args:
        model: any.
        names: of the modules of interest.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._lists: dict[nn.Module, int] = {}
        self._names: dict[nn.Module, str] = {}
        for key, (path, blocks) in enumerate(_outermost_lists(model, names)):
            for place, block in enumerate(blocks):
                self._lists[block] = key
                self._names[block] = f"{path}.{place}."
        self._pass: _Pass | None = None

    @contextmanager
    def wrapped(self) -> Iterator[None]:
        """While it lasts, `going_on` can be used. The modules are as before when it ends."""
        own = {block: vars(block).get("forward") for block in self._lists}
        try:
            for block in self._lists:
                block.forward = partial(self._run, block, block.forward)
            yield
        finally:
            for block, forward in own.items():
                if forward is None:
                    vars(block).pop("forward", None)
                else:
                    block.forward = forward

    @contextmanager
    def going_on(
        self, state: State, wanted: Mapping[str, int], device: torch.device
    ) -> Iterator[None]:
        """Run the model inside from where the state is; if it ends by `Reached`, the state is moved
        on to the last block that was finished.

        Args:
            wanted: names of modules that are to be called in the pass: `Reached` is raised where
                the block that has one of them ends, should it not be.
        """
        ends = {
            block for block, path in self._names.items() if any(w.startswith(path) for w in wanted)
        }
        self._pass = _Pass(state, ends, device)
        try:
            yield
        except Reached:
            self._pass.keep()
            raise
        finally:
            self._pass = None

    def _run(self, block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._pass is None:
            return forward(*args, **kwargs)
        return self._pass.run(block, self._lists[block], partial(forward, *args, **kwargs))


class _Pass:
    """One pass that goes on from a state, up to the first of some blocks."""

    def __init__(self, state: State, ends: set[nn.Module], device: torch.device) -> None:
        self._state, self._ends = state, ends
        self._calls = 0
        self._held = state.load(device)
        self._new: dict[int, Output] = {}
        self._kept = state.calls

    def run(self, block: nn.Module, key: int, forward: Callable[[], Any]) -> Any:
        self._calls += 1
        if self._calls <= self._state.calls:
            return self._held[key].tree()
        output = forward()
        if block in self._ends:
            raise Reached
        if self._kept == self._calls - 1:
            copy = Output.copied(output, self._held.get(key))
            if copy is not None:
                self._new[key], self._kept = copy, self._calls
        return output

    def keep(self) -> None:
        self._state.keep(self._kept, self._new)


def _outermost_lists(model: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, nn.ModuleList]]:
    """Those with some of the named modules in their members."""
    found: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{other}.") for other in found)
        if inside or not isinstance(module, nn.ModuleList):
            continue
        found.append(path)
        members = {f"{path}.{place}" for place in range(len(module))}
        holding = any(name.startswith(f"{path}.") for name in names)
        if holding and not members.intersection(names):
            yield path, module
