"""Work on disk, from which it goes on to the same bits. Tensors and text only: safetensors."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyext.errors import UserError
from pyext.files import whole_file

NAME = "checkpoint.safetensors"


class Resumable(Protocol):
    """Work that can be put down and taken up again."""

    step: int
    seconds: float

    def identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this work to go on with it."""

    def state(self) -> dict[str, Tensor]:
        """All that the rest of the work depends on, besides step and seconds."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave, at the step it was of."""


def save(work: Resumable, folder: Path) -> None:
    """Write all that the rest of the work depends on."""
    metadata = {**_identity(work), "step": str(work.step), "seconds": repr(work.seconds)}
    tensors = {name: tensor.detach().contiguous() for name, tensor in work.state().items()}
    with whole_file(folder / NAME) as path:
        save_file(tensors, path, metadata=metadata)


def resume(work: Resumable, folder: Path) -> bool:
    """Bring new work to where the folder's checkpoint left off; False if there is none.

    Raises:
        UserError: the checkpoint is of other data, settings or versions, or unreadable.
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
    for key, wanted in _identity(work).items():
        if metadata.get(key) != wanted:
            raise UserError(
                f"--output: {folder} holds a fit of {_describe(key, metadata.get(key))}, this is "
                f"{_describe(key, wanted)}; choose another folder, or remove {NAME} there"
            )
    work.step, work.seconds = int(metadata["step"]), float(metadata["seconds"])
    work.restore(tensors)
    return True


def _describe(key: str, value: str | None) -> str:
    if key == "settings" and value is not None:
        return ", ".join(f"{name} {number}" for name, number in json.loads(value).items())
    return f"{key} {value[:12]}" if value else "something else"


def _identity(work: Resumable) -> dict[str, str]:
    # Another version may take other steps.
    return {**work.identity(), "pyext-plugins": version("pyext-plugins")}
