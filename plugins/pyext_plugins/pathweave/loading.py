"""Q-Formers from folders of transformers models."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pyext.errors import UserError

# By the type in config.json: alone, or inside a model with an encoder and a language model.
ALONE = {
    "blip_2_qformer": "Blip2QFormer",
    "instructblip_qformer": "InstructBlipQFormer",
    "instructblipvideo_qformer": "InstructBlipVideoQFormer",
}
INSIDE = {
    "blip-2": "Blip2QFormer",
    "instructblip": "InstructBlipQFormer",
    "instructblipvideo": "InstructBlipVideoQFormer",
}
_QFORMER = re.compile(r"(?:model\.)?qformer\.(.+)")
_QUERIES = re.compile(r"(?:model\.)?query_tokens")


@dataclass(frozen=True)
class Base:
    """A Q-Former in float32, and the queries that it was trained with, [1, n, hidden], if any."""

    qformer: nn.Module
    queries: Tensor | None

    @property
    def device(self) -> torch.device:
        return next(self.qformer.parameters()).device

    @property
    def reads_text(self) -> bool:
        """Whether it takes the tokens of an instruction beside the queries."""
        return type(self.qformer).__name__.startswith("Instruct")


def load_base(path: Path) -> Base:
    """The Q-Former in a local folder: alone, or inside BLIP-2, InstructBLIP or InstructBlipVideo,
    of which nothing else is read. Nothing is fetched.

    Raises:
        UserError: the folder holds none.
    """
    file = path / "config.json"
    try:
        config = json.loads(file.read_text())
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--model: expected a folder with a transformers Q-Former, got {path}"
        ) from error
    if kind not in {**ALONE, **INSIDE}:
        known = ", ".join((*ALONE, *INSIDE))
        raise UserError(f"--model: expected model_type {known} in {file}, got {kind!r}")
    import transformers

    name = ALONE.get(kind) or INSIDE[kind]
    own = config if kind in ALONE else config.get("qformer_config", {})
    qformer: nn.Module = getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name}Config")(**own)
    )
    tensors, queries = _tensors(path, whole=kind in ALONE)
    try:
        found = qformer.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"--model: {path} does not fit its config.json: {reason}") from error
    if found.missing_keys:
        raise UserError(f"--model: {path} lacks {found.missing_keys[0]} of its Q-Former")
    return Base(qformer.float().eval(), None if queries is None else queries.float())


def _tensors(path: Path, whole: bool) -> tuple[dict[str, Any], Tensor | None]:
    """Those of the Q-Former, and the queries."""
    found, queries = {}, None
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(f"--model: expected weights in safetensors files, {path} has none")
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118
                    inside = _QFORMER.fullmatch(key)
                    if whole or inside:
                        found[inside[1] if inside else key] = opened.get_tensor(key)
                    elif _QUERIES.fullmatch(key):
                        queries = opened.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise UserError(f"--model: {file} cannot be read: {error}") from error
    return found, queries
