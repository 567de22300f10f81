"""Hidden states of a backbone, by hooks on its blocks: no private code of a model is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def find_layers(backbone: nn.Module, path: str | None = None) -> nn.ModuleList:
    """The blocks of a backbone: the one list of several modules of one class in it.

    Args:
        path: where they are, for a backbone with several such lists (encoder and decoder).

    Raises:
        ValueError: there is no such list, or more than one.
    """
    if path is not None:
        try:
            found = backbone.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"layers: {type(backbone).__name__} has no {path!r}") from error
        if not isinstance(found, nn.ModuleList):
            raise ValueError(f"layers: expected a ModuleList, {path!r} is {type(found).__name__}")
        return found
    lists: dict[str, nn.ModuleList] = {}
    for name, module in backbone.named_modules():
        inside = any(name.startswith(f"{other}.") for other in lists)
        if not inside and isinstance(module, nn.ModuleList) and _alike(module):
            lists[name] = module
    if len(lists) != 1:
        raise ValueError(
            f"layers: expected one list of blocks in {type(backbone).__name__}, found "
            f"{', '.join(lists) or 'none'}; say which"
        )
    return next(iter(lists.values()))


def _alike(layers: nn.ModuleList) -> bool:
    return len(layers) > 1 and len({type(layer) for layer in layers}) == 1


def is_causal(layers: nn.ModuleList) -> bool:
    """Whether a token of these blocks sees no later ones."""
    return any(getattr(module, "is_causal", False) is True for module in layers.modules())


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
