"""``rt_modules.bin`` of MRT's authors: a pickle of state dicts by module, read as tensors alone.

It lists modules and what is inside them, so that entries repeat. ``rotate_layer.weight`` is there
[D, r] and not orthonormal: R is the orthonormal basis of its columns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyext.errors import UserError
from pyext.ops import lowrank as ops
from pyext_plugins.mrt.config import MrtConfig
from pyext_plugins.mrt.model import PROJECTOR, TEXT, VISION, MrtEditor, parts_of, used_blocks
from pyext_plugins.pickled import read_tensors
from pyext_plugins.reft.editing import base_of
from pyext_plugins.reft.files import FLOAT32, put_in

NAME = "rt_modules.bin"
PLACES = {
    "prefix": re.compile(r"(?:.*\.)?prefix_lm_rt\.(\d+)\.(.+)"),
    "suffix": re.compile(r"(?:.*\.)?suffix_lm_rt\.(\d+)\.(.+)"),
    VISION: re.compile(r"(?:.*\.)?vision_rt\.(\d+)\.(.+)"),
    PROJECTOR: re.compile(r"(?:.*\.)?mm_rt()\.(.+)"),
}
KEYS = {"X": "rotate_layer.weight", "W": "learned_source.weight", "b": "learned_source.bias"}

Part = dict[tuple[str, int], dict[str, Tensor]]  # by place and number, by key


def load_author_files(
    model: nn.Module,
    folder: str | Path,
    length: int = 6,
    trainable: bool = False,
    freeze: bool = True,
) -> MrtEditor:
    """Put the editors that the authors' training left into a model.

    Vision editors behind blocks whose output is not used are left out: the authors keep them too.

    Args:
        model: the base they were trained on.
        folder: with rt_modules.bin, or that file.
        length: of prefix and suffix, which the file does not tell; 6 in the authors' code.
        trainable, freeze: as `MrtEditor.from_pretrained`.

    Raises:
        UserError: the file cannot be read, an editor lacks a tensor, or they do not fit the model.
    """
    path = Path(folder)
    path = path / NAME if path.is_dir() else path
    parts = _parts(path)
    blocks = {
        place: sorted(number for found, number in parts if found == place) for place in PLACES
    }
    if blocks["prefix"] != blocks["suffix"]:
        raise UserError(f"{path}: expected a prefix and a suffix editor of each block, got others")
    try:
        parts_of(base_of(model))
    except ValueError as error:
        raise UserError(f"{path}: the editors do not fit this model: {error}") from error
    settings = cast(Any, base_of(model)).config
    used = used_blocks(settings.vision_feature_layer, settings.vision_config.num_hidden_layers)
    vision = [number for number in blocks[VISION] if number < used]
    order = {
        VISION: [(VISION, number) for number in vision],
        PROJECTOR: [(PROJECTOR, number) for number in blocks[PROJECTOR]],
        TEXT: [(end, number) for number in blocks["prefix"] for end in ("prefix", "suffix")],
    }
    tensors: dict[str, Tensor] = {}
    ranks = {}
    for stack, places in order.items():
        if places:
            tensors |= _stacked(stack, [parts[place] for place in places], path)
            ranks[stack] = tensors[f"{stack}.R"].shape[1]
    config = MrtConfig(
        vision_rank=ranks.get(VISION, ranks.get(PROJECTOR, 1)),
        text_rank=ranks.get(TEXT, 1),
        prefix=length,
        suffix=length,
        vision_layers=tuple(vision),
        projector=bool(blocks[PROJECTOR]),
        text_layers=tuple(blocks["prefix"]),
    )
    return put_in(MrtEditor, model, config, tensors, path, trainable, freeze)


def _parts(path: Path) -> Part:
    content = read_tensors(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected state dicts by module, got {type(content).__name__}")
    parts: Part = {}
    for module, state in content.items():
        for key, tensor in dict(state).items():
            _sort_in(parts, f"{module}.{key}", tensor, path)
    if not parts:
        raise UserError(f"{path}: expected mm_rt, vision_rt, prefix_lm_rt or suffix_lm_rt in it")
    for (place, number), own in parts.items():
        if lacking := sorted(set(KEYS.values()) - set(own)):
            raise UserError(f"{path}: {place} {number}: no {lacking[0]}")
        if own[KEYS["X"]].dtype != torch.float32:
            dtype = str(own[KEYS["X"]].dtype).removeprefix("torch.")
            raise UserError(f"{path}: {place} {number}: {FLOAT32}, got {dtype}")
    return parts


def _sort_in(parts: Part, name: str, tensor: Tensor, path: Path) -> None:
    for place, pattern in PLACES.items():
        match = pattern.fullmatch(name)
        if match is None or match[2] not in KEYS.values():
            continue
        own = parts.setdefault((place, int(match[1] or 0)), {})
        if match[2] in own and not torch.equal(own[match[2]], tensor):
            raise UserError(f"{path}: {name} is there twice, with different values")
        own[match[2]] = tensor


def _stacked(stack: str, own: list[dict[str, Tensor]], path: Path) -> dict[str, Tensor]:
    try:
        X, W, b = (torch.stack([part[key].float() for part in own]) for key in KEYS.values())
        R = ops.orthonormalize(X.mT.contiguous()).R
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path}: {stack}: {error}") from error
    return {f"{stack}.R": R, f"{stack}.W": W, f"{stack}.b": b}
