"""The one feature a backbone makes of a sequence: where it stands, and how it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

# What outputs call that feature; projected ones first.
NAMES = ("text_embeds", "image_embeds", "pooler_output")


def summary_name(output: Any) -> str | None:
    """Under which of `NAMES` an output holds it; None where it does not."""
    return next((name for name in NAMES if getattr(output, name, None) is not None), None)


def summary_position(backbone: nn.Module, inputs: Mapping[str, Any], batch: int) -> Tensor:
    """Where the summary token of each sample stands, [batch] int64: the end of a text, else 0."""
    ids = inputs.get("input_ids")
    tower = getattr(backbone, "text_model", backbone)
    if ids is None or not hasattr(tower, "eos_token_id"):
        device = next(backbone.parameters()).device
        return torch.zeros(batch, dtype=torch.int64, device=device)
    # Old CLIP configs name a wrong end token, 2; the true one has the largest number of all.
    if tower.eos_token_id == 2:
        return ids.argmax(-1)
    return (ids == tower.eos_token_id).int().argmax(-1)


def pool(backbone: nn.Module, hidden: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """What the backbone's own pooler makes of other hidden states [B, N, E].

    Raises:
        NotImplementedError: the backbone pools in a way that is not known here.
    """
    pooler = getattr(backbone, "pooler", None)
    if pooler is not None:
        return cast(Tensor, pooler(hidden))
    if hasattr(backbone, "post_layernorm"):  # CLIP's image tower
        return cast(Tensor, cast(Any, backbone).post_layernorm(hidden[:, 0]))
    if hasattr(backbone, "eos_token_id"):  # CLIP's text tower
        rows = torch.arange(len(hidden), device=hidden.device)
        return hidden[rows, summary_position(backbone, inputs, len(hidden))]
    raise NotImplementedError(f"{type(backbone).__name__}: its pooled output cannot be made anew")
