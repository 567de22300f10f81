"""The blocks of a transformers model: where they are, and what they see."""

from __future__ import annotations

from torch import nn


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
