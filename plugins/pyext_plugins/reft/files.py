"""Editors on disk: ``adapter_model.safetensors`` and ``adapter_config.json``, as of peft's folders.

It is not peft's to load: peft registers only methods that its own list of types names. Tensors, for
each stack: ``STACK.R`` [E, r, D] orthonormal and in float32, ``STACK.W`` [E, r, D], ``STACK.b``
[E, r]; the text says which editor stands where, and at which tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyext.errors import UserError
from pyext.files import whole_file
from pyext_plugins.reft.config import Config, EditorConfig, config_from_json
from pyext_plugins.reft.editing import Editing, base_of
from pyext_plugins.reft.stack import Stack

Editor = TypeVar("Editor", bound=Editing)

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FLOAT32 = "the orthonormal factor must be kept in fp32"
ORTHONORMAL = 1e-4  # most that R R^T may be away from the identity


def save_editor(editor: Editing, folder: str | Path, config: EditorConfig, rule: str) -> None:
    """Write the editors of a model.

    Args:
        rule: which tokens are edited, in words.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    with torch.no_grad():
        factors = editor.factors()
    for name, stack in editor.named_stacks().items():
        own = {"R": factors[name].B, "W": stack.W, "b": stack.b}
        for key, tensor in own.items():
            if tensor is not None:
                tensors[f"{name}.{key}"] = tensor.detach().float().cpu().contiguous()
    with whole_file(folder / WEIGHTS) as path:
        save_file(tensors, path, metadata={"format": "pt"})
    base = base_of(editor.model)
    content = {
        "peft_type": editor.METHOD,
        "base_model_name_or_path": getattr(base, "name_or_path", ""),
        "base_class": type(base).__name__,
        "positions": rule,
        "editors": [site._asdict() for site in editor.sites],
        "config": config.as_json(),
    }
    with whole_file(folder / CONFIG) as path:
        path.write_text(json.dumps(content, indent=2) + "\n")


def read_config(folder: str | Path, method: str) -> dict[str, Any]:
    """The text of a folder of this method.

    Raises:
        UserError: the folder holds no editors, or those of another method.
    """
    path = Path(folder) / CONFIG
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    found = content.get("peft_type") if isinstance(content, dict) else None
    if found != method or not isinstance(content.get("config"), dict):
        raise UserError(f"{path}: expected editors of type {method}, got {found!r}")
    return dict(content)


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Raises: UserError: there is no such file, or it is none."""
    path = Path(folder) / WEIGHTS
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def load_stacks(
    editor: Editing, tensors: Mapping[str, Tensor], source: str | Path, trainable: bool
) -> None:
    """Put R, W and b into the stacks of a model, all or none.

    Args:
        tensors: as `save_editor` writes them.
        source: where they are from, for messages.
        trainable: False uses R as it is, to the bit, and trains nothing.

    Raises:
        UserError: tensors are missing, too many or of another shape, or R is not orthonormal or not
            in float32.
    """
    stacks = editor.named_stacks()
    wanted: dict[str, Tensor] = {}
    for name, stack in stacks.items():
        own = {"R": stack.X, "W": stack.W, "b": stack.b}
        wanted |= {f"{name}.{key}": tensor for key, tensor in own.items() if tensor is not None}
    if set(wanted) != set(tensors):
        differing = ", ".join(sorted(set(wanted) ^ set(tensors))[:3])
        raise UserError(f"{source}: not the editors of this config: {differing}")
    for key, tensor in wanted.items():
        shape, given = list(tensor.shape), list(tensors[key].shape)
        if given != shape:
            raise UserError(f"{source}: {key}: expected shape {shape}, got {given}")
    for name, stack in stacks.items():
        check_basis(f"{source}: {name}.R", tensors[f"{name}.R"], stack)
    for name, stack in stacks.items():
        R, W, b = (tensors.get(f"{name}.{key}") for key in ("R", "W", "b"))
        assert R is not None
        assert b is not None
        stack.load(R, W, b, fixed=not trainable)


def check_basis(name: str, R: Tensor, stack: Stack) -> None:
    """Raises: UserError: R [E, r, D] is not what the kind of the stack needs."""
    if R.dtype != torch.float32:
        raise UserError(f"{name}: {FLOAT32}, got {str(R.dtype).removeprefix('torch.')}")
    away = float((R @ R.mT - torch.eye(R.shape[1])).abs().max())
    if stack.kind.orthonormal and not away < ORTHONORMAL:
        raise UserError(f"{name}: expected orthonormal rows, R R^T is {away:.1e} off the identity")


def restore(
    make: Callable[[nn.Module, Config, bool], Editor],
    kind: type[Config],
    method: str,
    model: nn.Module,
    folder: str | Path,
    trainable: bool,
    freeze: bool,
) -> Editor:
    """Put saved editors into a model: what ``from_pretrained`` does.

    Raises:
        UserError: the folder holds no editors, or they do not fit the model, which then has none.
    """
    folder = Path(folder)
    tensors, content = read_weights(folder), read_config(folder, method)
    try:
        config = config_from_json(kind, content["config"])
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / CONFIG}: {error}") from error
    return put_in(make, model, config, tensors, folder, trainable, freeze)


def put_in(
    make: Callable[[nn.Module, Config, bool], Editor],
    model: nn.Module,
    config: Config,
    tensors: Mapping[str, Tensor],
    source: Path,
    trainable: bool,
    freeze: bool,
) -> Editor:
    """New editors in a model, with these weights.

    Raises:
        UserError: they do not fit the model, which then has none.
    """
    try:
        editor = make(model, config, freeze)
    except ValueError as error:
        raise UserError(f"{source}: the editors do not fit this model: {error}") from error
    try:
        load_stacks(editor, tensors, source, trainable)
    except UserError:
        editor.remove()
        raise
    return editor
