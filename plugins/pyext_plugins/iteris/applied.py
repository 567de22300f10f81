"""A model that computes with updates on, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pyext_plugins.iteris.adapters import LowRank


@contextmanager
def applied(model: nn.Module, modules: Mapping[str, LowRank]) -> Iterator[None]:
    """Add each update to the output of its module, beside the base's weight, as peft does.

    Args:
        model: any tree; the named modules are linear maps from the last dimension, whichever way
            round they keep their weights. It is as before when the block ends.

    Raises:
        AttributeError: the model has no module of one of the names.
    """
    handles = []
    try:
        for name, update in modules.items():
            hook = _adding(update)
            handles.append(model.get_submodule(name).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(update: LowRank) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        (x,) = inputs
        a, b = (factor.to(output.device, output.dtype) for factor in (update.a, update.b))
        return output + ((x @ a.T) @ b.T) * update.scale

    return add
