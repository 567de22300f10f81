"""Editors in a LLaVA model: ``MrtEditor(model, MrtConfig())``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor, nn

from pyext_plugins.blocks import find_layers
from pyext_plugins.mrt.config import MrtConfig
from pyext_plugins.reft.config import pick_layers
from pyext_plugins.reft.editing import Editing, Site, answers, base_of, real_tokens
from pyext_plugins.reft.files import restore, save_editor
from pyext_plugins.reft.positions import ends, question
from pyext_plugins.reft.stack import Stack

VISION, PROJECTOR, TEXT = "vision", "projector", "text"  # stacks
PARTS = ("vision_tower", "multi_modal_projector", "language_model")
RULE = (
    "vision blocks and projector: everywhere; language model: of the n tokens of a question, the "
    "first min(prefix, floor(n / 2)) and the last min(suffix, ceil(n / 2)); the question is what "
    "follows the last token of an image, or the whole prompt without one, up to the first token "
    "that has a label"
)


class MrtEditor(Editing):
    """Editors after vision blocks, the projector and blocks of the language model.

    Vision blocks and projector are edited everywhere, whenever pictures are read; tokens of the
    question in the prefill only.

    Args:
        model: `LlavaForConditionalGeneration` of transformers, or a peft model of one. It stays
            what it was and gets the editors among its modules.
        config: what editors compute and where they stand.
        freeze: False leaves the model's parameters as they are: to train a LoRA as well.

    Raises:
        ValueError: the config does not fit the model, it is no such model, or there are editors in
            it already.
    """

    METHOD = "MRT"

    def __init__(self, model: nn.Module, config: MrtConfig, freeze: bool = True) -> None:
        base = base_of(model)
        names = {id(module): name for name, module in base.named_modules()}
        stacks, sites = {}, []
        for group in groups(base, config):
            device = next(group.modules[0].parameters()).device
            count = group.each * len(group.modules)
            stacks[group.name] = Stack(count, group.rank, group.width, config, device)
            sites += [
                Site(names[id(module)], group.name, place, group.where)
                for place, module in enumerate(group.modules)
            ]
        if not sites:
            raise ValueError("vision_layers, projector, text_layers: nothing is edited")
        super().__init__(model, stacks, sites, freeze)
        self.config = config
        self.image_token = int(cast(Any, base).config.image_token_id)

    @property
    def prefix(self) -> int:
        return self.config.prefix

    def positions(self, inputs: Mapping[str, Any], hidden: Tensor) -> Tensor:
        """Rows of the question's first and last tokens.

        The question is what follows the last token of an image, template words included, or the
        whole prompt where there is no image; it ends where its answer begins, which labels tell:
        there is none yet when the model is asked. Padding, on any side, is what the attention mask
        does not mark. A prompt that was cut off behind its image has no question, and is not
        edited.

        Raises:
            ValueError: the call has no ``input_ids``, or its mask or labels do not fit them.
        """
        ids = inputs.get("input_ids")
        if not isinstance(ids, Tensor):
            raise ValueError("input_ids: expected them, to tell images from questions, got None")
        image = (ids == self.image_token).to(hidden.device)
        real, labels = real_tokens(inputs, hidden), answers(inputs, hidden)
        return ends(question(real, image, labels), self.config.prefix, self.config.suffix)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapter_model.safetensors and adapter_config.json: see `reft.files`."""
        save_editor(self, folder, self.config, RULE)

    @classmethod
    def from_pretrained(
        cls, model: nn.Module, folder: str | Path, trainable: bool = False, freeze: bool = True
    ) -> MrtEditor:
        """Put saved editors into a model.

        Args:
            trainable: False gives the saved outputs to the bit and trains nothing.
            freeze: as of the class.

        Raises:
            UserError: the folder holds no editors, or they do not fit the model.
        """
        return restore(cls, MrtConfig, cls.METHOD, model, folder, trainable, freeze)


class Group(NamedTuple):
    """Modules after each of which stand ``each`` editors of one shape."""

    name: str
    modules: list[nn.Module]
    rank: int
    width: int
    each: int
    where: Literal["tokens", "all"]


def groups(base: nn.Module, config: MrtConfig) -> list[Group]:
    """What a config edits in a model; groups without modules are left out.

    Raises:
        ValueError: the config does not fit the model, or it is no LLaVA model.
    """
    llava, settings = parts_of(base), cast(Any, base).config
    tower, projector, language = (cast(nn.Module, getattr(llava, part)) for part in PARTS)
    blocks, text = find_layers(tower), find_layers(language)
    used = used_blocks(settings.vision_feature_layer, len(blocks))
    vision = [blocks[k] for k in pick_layers("vision_layers", config.vision_layers, used)]
    chosen = [text[k] for k in pick_layers("text_layers", config.text_layers, len(text))]
    if not config.prefix + config.suffix:
        chosen = []
    narrow, wide = settings.vision_config.hidden_size, settings.text_config.hidden_size
    found = [
        Group(VISION, vision, config.vision_rank, narrow, 1, "all"),
        Group(PROJECTOR, [projector] * config.projector, config.vision_rank, wide, 1, "all"),
        Group(TEXT, chosen, config.text_rank, wide, config.editors_per_block, "tokens"),
    ]
    return [group for group in found if group.modules]


def parts_of(base: nn.Module) -> nn.Module:
    """The module with tower, projector and language model.

    Raises:
        ValueError: it is no LLaVA model.
    """
    for module in (base, getattr(base, "model", None)):
        if isinstance(module, nn.Module) and all(hasattr(module, part) for part in PARTS):
            return module
    raise ValueError(f"model: expected a LLaVA model, {type(base).__name__} has no {PARTS[0]}")


def used_blocks(feature_layer: int | Sequence[int], blocks: int) -> int:
    """How many of the first vision blocks reach the projector.

    Hidden state 0 is what the first block receives, k what block k - 1 gives; negative numbers
    count from the last.
    """
    wanted = [feature_layer] if isinstance(feature_layer, int) else list(feature_layer)
    return max(number if number >= 0 else blocks + 1 + number for number in wanted)
