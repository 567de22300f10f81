"""Hidden states of a backbone, by hooks on its blocks: no private code of a model is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


@contextmanager
def collect(layers: nn.ModuleList, wanted: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """While open, a run of the backbone leaves the wanted hidden states here, detached.

    Number 0 is what the first block receives, k what block k gives.
    """
    found: dict[int, Tensor] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found[0] = _hidden(args, kwargs).detach()

    def after(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # Depending on the model: the hidden state, or a tuple that begins with it.
            hidden = output[0] if isinstance(output, tuple) else output
            found[index] = hidden.detach()

        return hook

    handles = []
    if 0 in wanted:
        handles.append(layers[0].register_forward_pre_hook(before, with_kwargs=True))
    handles += [layers[k - 1].register_forward_hook(after(k)) for k in wanted if k > 0]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replace_input(layer: nn.Module, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, a block runs on ``replace(hidden)`` instead of the hidden state it is given."""

    def before(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        new = replace(_hidden(args, kwargs))
        if args:
            return (new, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": new}

    handle = layer.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
