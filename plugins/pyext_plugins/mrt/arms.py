"""Ways to tune the demo's model to the shifted instruction."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from pyext_plugins.mrt.config import MrtConfig
from pyext_plugins.mrt.model import MrtEditor

UNTOUCHED, FULL, MRT = "untouched", "full fine-tuning", "MRT V+C+P/S"
VISION_ONLY, TEXT_ONLY, TEXT_AS_MANY = "MRT V", "text-only ReFT", "text-only ReFT, rank 5"
TOKENS = {"prefix": 3, "suffix": 3}
NOWHERE = {"vision_layers": (), "projector": False, "text_layers": ()}


@dataclass(frozen=True)
class Arm:
    """Editors of a config, or LoRAs of a rank on queries and values; neither: the whole model."""

    step_size: float
    editors: MrtConfig | None = None
    lora: int | None = None

    def build(self, base: nn.Module, seed: int) -> nn.Module:
        """A copy of the base that wants gradients where this arm trains."""
        torch.manual_seed(seed)
        model = copy.deepcopy(base)
        if self.editors is not None:
            MrtEditor(model, self.editors)
        elif self.lora is not None:
            return with_lora(model, self.lora)
        return model


def with_lora(model: nn.Module, rank: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"])
    with warnings.catch_warnings():
        # peft asks transformers for something under its old name.
        warnings.simplefilter("ignore", FutureWarning)
        return cast(nn.Module, get_peft_model(cast(Any, model), config))


def editors(**more: object) -> MrtConfig:
    return MrtConfig(**{"vision_rank": 4, "text_rank": 2, **TOKENS, **more})  # type: ignore[arg-type]


# Step sizes: what did each kind of arm good on another seed than those shown.
EDITED, LORA = 3e-2, 3e-2
ARMS = {
    FULL: Arm(3e-3),
    "LoRA, rank 2": Arm(LORA, lora=2),
    "LoRA, rank 1": Arm(LORA, lora=1),
    MRT: Arm(EDITED, editors()),
    "MRT V+P/S": Arm(EDITED, editors(projector=False)),
    VISION_ONLY: Arm(EDITED, editors(**{**NOWHERE, "vision_layers": None})),
    "MRT C": Arm(EDITED, editors(**{**NOWHERE, "projector": True})),
    TEXT_ONLY: Arm(EDITED, editors(**{**NOWHERE, "text_layers": None})),
    TEXT_AS_MANY: Arm(EDITED, editors(**{**NOWHERE, "text_layers": None, "text_rank": 5})),
}
