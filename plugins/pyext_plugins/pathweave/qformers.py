"""The sites of transformers' Q-Formers: where PathWeave's authors put adapters."""

from __future__ import annotations

import re

from torch import nn

PROJECTION = "language_projection"
_SITE = re.compile(
    r"(.*\.)?encoder\.layer\.\d+\.(attention|crossattention)"
    r"\.(attention\.(query|key|value)|output\.dense)"
)


def qformer_sites(model: nn.Module, projection: bool = False) -> list[str]:
    """Query, key, value and output of all self- and cross-attentions of the Q-Formers in a model.

    72 in BLIP-2's Q-Former: 12 blocks, every second with a cross-attention. The feed-forward
    layers have none.

    Args:
        model: a `Blip2QFormerModel`, `InstructBlipQFormerModel` or `InstructBlipVideoQFormerModel`,
            or a model with one in it.
        projection: name the projection to the language model too, which is `plain` in the authors'
            code: ``PathWeave(model, qformer_sites(model, True), plain=["language_projection"])``.

    Raises:
        ValueError: there is no Q-Former in it, or no projection.
    """
    formers = [name for name, module in model.named_modules() if is_qformer(module)]
    if not formers:
        raise ValueError(f"model: expected a Q-Former, {type(model).__name__} holds none")
    sites = [
        name
        for name, _ in model.named_modules()
        if _SITE.fullmatch(name) and any(name.startswith(former) for former in formers)
    ]
    if projection:
        if not isinstance(getattr(model, PROJECTION, None), nn.Linear):
            raise ValueError(f"projection: {type(model).__name__} has no {PROJECTION}")
        sites.append(PROJECTION)
    return sites


def is_qformer(module: nn.Module) -> bool:
    """By the name of its class: transformers has one for each kind of model."""
    return type(module).__name__.endswith("QFormerModel")
