"""Inverted images on disk: one safetensors file, a tensor for each class."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyext.errors import UserError
from pyext.files import whole_file

NAME = "inversions.safetensors"
FACTS = ("model", "scheduler", "steps", "conditions", "files", "pictures", "dtype", "batch")


@dataclass(frozen=True)
class Pool:
    """The inversions of a folder of pictures.

    Args:
        tensors: of each class, [n, *S].
        facts: model (SHA-256 of its weights), scheduler (its settings), steps, conditions (what the
            model was told of each class), files (names of each class's pictures), pictures (SHA-256
            of them), dtype and batch.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        return list(self.tensors)

    @cached_property
    def all(self) -> Tensor:
        """[N, *S], class by class."""
        return torch.cat(list(self.tensors.values()))

    @cached_property
    def names(self) -> list[str]:
        """class/file of every row of `all`."""
        files = self.facts["files"]
        return [f"{name}/{file}" for name in self.tensors for file in files[name]]

    @cached_property
    def first_row(self) -> dict[str, int]:
        """Of each class in `all`."""
        found, row = {}, 0
        for name, tensor in self.tensors.items():
            found[name] = row
            row += len(tensor)
        return found

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the inversions."""
        found = hashlib.sha256()
        for name, tensor in self.tensors.items():
            found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


def save_pool(pool: Pool, path: Path) -> None:
    """Write a pool; its facts go into the metadata, as one JSON text.

    Of several entries safetensors writes now one first and now another; the same pool is to have
    the same bytes.
    """
    metadata = {"diffii": json.dumps({name: pool.facts[name] for name in FACTS})}
    tensors = {name: tensor.contiguous() for name, tensor in pool.tensors.items()}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_pool(path: Path, argument: str = "--inversions") -> Pool:
    """Read a pool.

    Raises:
        UserError: there is no such file, or it is not one of these.
    """
    if not path.is_file():
        raise UserError(f"{argument}: expected a file that `invert` wrote, {path} is not a file")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["diffii"])
            # safetensors sorts by name, the folder's order is kept in the facts.
            tensors = {name: file.get_tensor(name) for name in facts["files"]}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{argument}: {path} is not a file that `invert` wrote: {error}") from error
    pool = Pool(tensors, facts)
    for name, tensor in tensors.items():
        if len(tensor) != len(facts["files"][name]):
            raise UserError(
                f"{argument}: {path}: class {name!r} has {len(tensor)} inversions of "
                f"{len(facts['files'][name])} files"
            )
    return pool
