"""Folders of pyreft, the ReFT authors' library: one ``intkey_*.bin`` an editor.

They are pickles, and read as tensors alone. ``rotate_layer`` is there the transpose [D, r] of R,
and its subspace already orthonormal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pyext.errors import UserError
from pyext_plugins.pickled import read_tensors
from pyext_plugins.reft.config import KINDS, ReftConfig
from pyext_plugins.reft.files import FLOAT32, put_in
from pyext_plugins.reft.model import STACK, Editor

PATTERN = re.compile(r"intkey_layer[._](\d+)[._]comp[._]block_output[._].*#(\d+)\.bin")
KEYS = {True: ("rotate_layer", "weight", "bias"), False: ("rotate_layer", "learned_source")}


def load_pyreft(
    model: nn.Module,
    folder: str | Path,
    config: ReftConfig | None = None,
    trainable: bool = False,
    freeze: bool = True,
) -> Editor:
    """Put the editors of a pyreft folder into a model.

    Args:
        model: the base they were trained on.
        folder: with the files; or the one above ``intervenable_model``.
        config: kind, activation, dropout and the numbers of tokens, which the files do not tell;
            layers, rank and tied are taken from the files. LoReFT's defaults unless given.
        trainable, freeze: as `Editor.from_pretrained`.

    Raises:
        UserError: the folder holds no such files, they are not of this kind or not in fp32, or do
            not fit the model.
    """
    folder = Path(folder)
    inner = folder / "intervenable_model"
    folder = inner if inner.is_dir() else folder
    config = ReftConfig() if config is None else config
    if not KINDS[config.kind].orthonormal:
        raise UserError(f"kind: pyreft keeps no rotate_layer of {config.kind}")
    found = _files(folder)
    layers = sorted({layer for layer, _ in found})
    numbers = sorted({number for _, number in found})
    if numbers not in ([0], [0, 1]) or len(found) != len(layers) * len(numbers):
        raise UserError(f"{folder}: expected one file a layer, or two, got {len(found)} in all")
    learned = KINDS[config.kind].learned
    states = [_read(found[layer, number], learned) for layer in layers for number in numbers]
    rank = states[0]["rotate_layer"].shape[1]
    tied = len(numbers) == 1
    config = replace(config, layers=tuple(layers), rank=rank, tied=tied)
    if config.editors_per_block != len(numbers):
        raise UserError(f"{folder}: two editors a layer, expected a prefix and a suffix")
    return put_in(Editor, model, config, _stacked(states, folder), folder, trainable, freeze)


def _files(folder: Path) -> dict[tuple[int, int], Path]:
    """By layer and number."""
    found = {}
    for path in sorted(folder.glob("intkey_*.bin")):
        match = PATTERN.fullmatch(path.name)
        if match is None:
            raise UserError(
                f"{path}: expected an edit of a layer's block_output, as pyreft names it"
            )
        found[int(match[1]), int(match[2])] = path
    if not found:
        raise UserError(f"{folder}: expected files intkey_*.bin of pyreft, there are none")
    return found


def _read(path: Path, learned: bool) -> Mapping[str, Tensor]:
    state = read_tensors(path)
    if not isinstance(state, Mapping) or not set(KEYS[learned]) <= set(state):
        has = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise UserError(f"{path}: expected {', '.join(KEYS[learned])}, got {has}")
    if state["rotate_layer"].dtype != torch.float32:
        dtype = str(state["rotate_layer"].dtype).removeprefix("torch.")
        raise UserError(f"{path}: rotate_layer: {FLOAT32}, got {dtype}")
    return state


def _stacked(states: Sequence[Mapping[str, Tensor]], folder: Path) -> dict[str, Tensor]:
    bias = "bias" if "bias" in states[0] else "learned_source"
    names = {"R": "rotate_layer", "W": "weight", "b": bias}
    stacked = {}
    for key, name in names.items():
        if name not in states[0]:
            continue
        try:
            whole = torch.stack([state[name].float() for state in states])
        except RuntimeError as error:
            raise UserError(f"{folder}: editors of different shapes: {name}") from error
        stacked[f"{STACK}.{key}"] = whole.mT.contiguous() if key == "R" else whole
    return stacked
