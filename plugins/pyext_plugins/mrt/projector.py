"""The projector's editor folded into the projector.

After a linear map ``y = P x + p`` an editor without activation is a linear map too, with
``M = I + R^T (W - R)``: ``P' = M P``, ``p' = M p + R^T b``.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from pyext_plugins.mrt.model import PARTS, PROJECTOR, MrtEditor, parts_of
from pyext_plugins.reft.editing import base_of

LAST = "linear_2"  # of LLaVA's projector


@torch.no_grad()
def merged_projector(editor: MrtEditor, stack: str = PROJECTOR) -> nn.Linear:
    """The projector's last linear layer and its editor in one, computed in float64.

    ``base.model.multi_modal_projector.linear_2`` can be replaced by it in a model without editors.

    Args:
        editor: stays as it is, as does its model.
        stack: which editors to merge.

    Returns:
        A linear layer in the dtype of the projector's own, with a bias.

    Raises:
        ValueError: these editors are not those of the projector, are none, or have an activation.
    """
    if stack != PROJECTOR:
        raise ValueError(
            f"stack: the editors of {stack!r} stand behind what is not linear, or edit some "
            f"positions only: they cannot be merged into weights; expected {PROJECTOR!r}"
        )
    if PROJECTOR not in editor.stacks:
        raise ValueError("stack: there is no editor after the projector")
    if editor.config.act != "identity":
        raise ValueError(f"act: an editor with {editor.config.act} cannot be merged into weights")
    projector = getattr(parts_of(base_of(editor.model)), PARTS[1])
    last = cast(nn.Linear, getattr(projector, LAST))
    A, B, a = (tensor[0].double() for tensor in editor.factors()[PROJECTOR])
    merged = nn.Linear(last.in_features, last.out_features, device=last.weight.device)
    merged = merged.to(last.weight.dtype)
    weight = last.weight.double()
    bias = torch.zeros_like(weight[:, 0]) if last.bias is None else last.bias.double()
    merged.weight.copy_(weight + B.T @ (A @ weight))
    merged.bias.copy_(bias + B.T @ (A @ bias + a))
    return merged
