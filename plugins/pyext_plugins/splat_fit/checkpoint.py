"""A fit on disk, from which it goes on to the same bits. Tensors and text only: safetensors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyext.errors import UserError
from pyext.files import whole_file
from pyext_plugins.splat_fit.fitting import Fit

NAME = "checkpoint.safetensors"


def save(fit: Fit, folder: Path) -> None:
    """Write all that the rest of the fit depends on."""
    metadata = {**_identity(fit), "step": str(fit.step), "seconds": repr(fit.seconds)}
    with whole_file(folder / NAME) as path:
        save_file(_tensors(fit), path, metadata=metadata)


def resume(fit: Fit, folder: Path) -> bool:
    """Bring a new fit to where the folder's checkpoint left off; False if there is none.

    Raises:
        UserError: the checkpoint is of another picture, settings or version, or unreadable.
    """
    path = folder / NAME
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"--output: {path} cannot be read: {error}") from error
    for key, wanted in _identity(fit).items():
        if metadata.get(key) != wanted:
            raise UserError(
                f"--output: {folder} holds a fit of {_describe(key, metadata.get(key))}, this is "
                f"{_describe(key, wanted)}; choose another folder, or remove {NAME} there"
            )
    fit.step, fit.seconds = int(metadata["step"]), float(metadata["seconds"])
    _restore(fit, tensors)
    return True


def _describe(key: str, value: str | None) -> str:
    if key == "settings" and value is not None:
        return ", ".join(f"{name} {number}" for name, number in json.loads(value).items())
    return f"{key} {value[:12]}" if value else "something else"


def _identity(fit: Fit) -> dict[str, str]:
    digest = hashlib.sha256(repr(tuple(fit.target.shape)).encode())
    digest.update(fit.target.numpy().tobytes())
    return {
        "settings": json.dumps(asdict(fit.settings)),
        "picture": digest.hexdigest(),
        "pyext-plugins": version("pyext-plugins"),  # another version may take other steps
    }


def _tensors(fit: Fit) -> dict[str, Tensor]:
    tensors = {f"snapshot.{step}": picture for step, picture in fit.snapshots.items()}
    for name, parameter in fit.parameters.items():
        tensors[f"parameter.{name}"] = parameter.detach()
        for key, value in fit.optimizer.state[parameter].items():
            tensors[f"adam.{name}.{key}"] = value
    return tensors


def _restore(fit: Fit, tensors: dict[str, Tensor]) -> None:
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "snapshot":
            fit.snapshots[int(rest)] = value
        elif kind == "parameter":
            with torch.no_grad():
                fit.parameters[rest].copy_(value)
        else:
            name, _, field = rest.partition(".")
            fit.optimizer.state[fit.parameters[name]][field] = value
