"""A base run under the updates of a task or of the merger, up to the modules of interest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.blocks import Blocks, Reached
from pyext_plugins.iteris.groups import Group
from pyext_plugins.iteris.linear import base_bias, device_of
from pyext_plugins.iteris.states import State
from pyext_plugins.iteris.tasks import Batch


class Brancher:
    """Runs a model whose modules give more than their weights do: updates added from outside.

    The model is left as it was found. It is run in evaluation mode and without a cache.

    Args:
        model: a base.
        names: of modules that ever get an update.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.model = model
        modules = dict(model.named_modules())
        self.modules = {name: modules[name] for name in names}
        self._blocks = Blocks(model, names)
        self._updates: Mapping[str, LowRank] = {}
        self._wanted: Mapping[str, int] = {}
        self._found: dict[str, list[Tensor]] = {}

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """While it lasts, `inputs` and `outputs` can be called."""
        was_training, config = self.model.training, getattr(self.model, "config", None)
        caching = getattr(config, "use_cache", None)
        hooks = []
        for name, module in self.modules.items():
            hooks.append(module.register_forward_pre_hook(self._before(name)))
            hooks.append(module.register_forward_hook(self._after(name)))
        try:
            self.model.eval()
            if config is not None and caching:
                config.use_cache = False
            with torch.no_grad(), self._blocks.wrapped():
                yield
        finally:
            for hook in hooks:
                hook.remove()
            self.model.train(was_training)
            if config is not None and caching:
                config.use_cache = caching

    def inputs(
        self,
        batch: Batch,
        updates: Mapping[str, LowRank],
        wanted: Mapping[str, int],
        state: State | None = None,
    ) -> dict[str, Tensor]:
        """What modules read, without what was filled up, [rows, d] each.

        Args:
            updates: added to the modules of these names.
            wanted: how often each module is called; the run ends when all have been.
            state: to go on from, and to move on: of the same batch, and of a run whose updates were
                the same in all modules before those that are wanted; those are in one block.
        """
        self._updates, self._wanted, self._found = updates, wanted, {}
        going_on = self._blocks.going_on(state, wanted, self.device) if state else nullcontext()
        try:
            with going_on:
                self.model(**batch.inputs)
        except Reached:
            pass
        finally:
            self._updates, self._wanted = {}, {}
        rows = {name: [batch.rows(x) for x in found] for name, found in self._found.items()}
        self._found = {}
        return {name: torch.cat(own) if len(own) > 1 else own[0] for name, own in rows.items()}

    def can_go_on(
        self,
        batch: Batch,
        updates: Mapping[str, LowRank],
        groups: Sequence[Group],
        state: State,
    ) -> bool:
        """Whether going on from a state, group after group, gives each the inputs of one whole run,
        to the bit.

        Args:
            groups: in the order of their calls.
            state: a new one.
        """
        whole = self.inputs(batch, updates, {group.first: group.calls for group in groups})
        try:
            for group in groups:
                own = self.inputs(batch, updates, {group.first: group.calls}, state)
                if own.keys() != {group.first} & whole.keys():
                    return False
                if own and not torch.equal(own[group.first], whole[group.first]):
                    return False
        except Exception:
            # Whatever a model does where a block gives what it did not expect.
            return False
        return True

    def output(self, name: str, x: Tensor, update: LowRank | None) -> Tensor:
        """What a module gives, its update included and its bias not, for rows x [rows, d]."""
        module = self.modules[name]
        y = module(x) if update is None else module(x) + low_rank_output(update, x)
        bias = base_bias(module)
        return y if bias is None else y - bias

    def _before(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if name in self._wanted:
                self._found.setdefault(name, []).append(args[0])
                if all(len(self._found.get(n, ())) >= k for n, k in self._wanted.items()):
                    raise Reached

        return hook

    def _after(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            update = self._updates.get(name)
            return None if update is None else output + low_rank_output(update, args[0])

        return hook


def low_rank_output(update: LowRank, x: Tensor) -> Tensor:
    """What an update gives for x [..., d], in its dtype, [..., o]."""
    a, b = update.a.to(x), update.b.to(x)
    return F.linear(F.linear(x, a), b) * update.scale
