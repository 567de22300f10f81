"""Editors after the blocks of a model: ``Editor(model, ReftConfig())``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from pyext_plugins.blocks import find_layers, is_causal
from pyext_plugins.reft.config import ReftConfig, pick_layers
from pyext_plugins.reft.editing import Editing, Site, answers, base_of, real_tokens
from pyext_plugins.reft.files import restore, save_editor
from pyext_plugins.reft.positions import ends, prompt
from pyext_plugins.reft.stack import Stack

STACK = "blocks"
RULE = (
    "of the n tokens of a sample that count, the first min(prefix, floor(n / 2)) and the last "
    "min(suffix, ceil(n / 2)); those count that the attention mask marks, and in training of a "
    "causal model those before the first that has a label"
)


class Editor(Editing):
    """Editors after blocks of a decoder or an encoder, at the first and last tokens of a sample.

    Which tokens count: those the attention mask marks, or all without one. In a causal model that
    is given labels [B, S], those before the first that has a label: the prompt. See `ReftConfig`
    for how many are edited.

    Args:
        model: a transformers model, or a peft model of one. It stays what it was and gets the
            editors among its modules, on the device of its blocks.
        config: what editors compute and where they stand.
        freeze: False leaves the model's parameters as they are: to train a head or a LoRA as well.

    Raises:
        ValueError: the config does not fit the model, or there are editors in it already.
        NotImplementedError: the model is an encoder with a decoder.
    """

    METHOD = "REFT"

    def __init__(self, model: nn.Module, config: ReftConfig, freeze: bool = True) -> None:
        base = base_of(model)
        settings = cast(Any, base).config
        if getattr(settings, "is_encoder_decoder", False):
            raise NotImplementedError(
                f"model: {type(base).__name__} is an encoder with a decoder; take one of the two"
            )
        layers = find_layers(base, config.blocks)
        chosen = pick_layers("layers", config.layers, len(layers))
        count = len(chosen) * config.editors_per_block
        if not count or not config.prefix + config.suffix:
            raise ValueError("prefix, suffix, layers: nothing is edited")
        width = settings.get_text_config().hidden_size
        device = next(layers.parameters()).device
        path = next(name for name, module in base.named_modules() if module is layers)
        sites = [
            Site(f"{path}.{layer}", STACK, place, "tokens") for place, layer in enumerate(chosen)
        ]
        stack = Stack(count, config.rank, width, config, device)
        super().__init__(model, {STACK: stack}, sites, freeze)
        self.config = config
        self.causal = is_causal(layers)

    @property
    def prefix(self) -> int:
        return self.config.prefix

    def positions(self, inputs: Mapping[str, Any], hidden: Tensor) -> Tensor:
        labels = answers(inputs, hidden) if self.causal else None
        counting = prompt(real_tokens(inputs, hidden), labels)
        if labels is not None and not bool(counting.any()):
            raise ValueError(
                "labels: all tokens are answers, so there is none to edit; expected -100 on the "
                "prompt"
            )
        return ends(counting, self.config.prefix, self.config.suffix)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapter_model.safetensors and adapter_config.json: see `files`."""
        save_editor(self, folder, self.config, RULE)

    @classmethod
    def from_pretrained(
        cls, model: nn.Module, folder: str | Path, trainable: bool = False, freeze: bool = True
    ) -> Editor:
        """Put saved editors into a model.

        Args:
            trainable: False gives the saved outputs to the bit and trains nothing.
            freeze: as of the class.

        Raises:
            UserError: the folder holds no editors, or they do not fit the model; it is then as it
                was, but frozen.
        """
        return restore(cls, ReftConfig, cls.METHOD, model, folder, trainable, freeze)
