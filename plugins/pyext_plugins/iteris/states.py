"""Where passes of a model can go on from: what its blocks gave, on disk."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from pyext_plugins.iteris.processes import number

_ENTRY = "state"
_PLAIN = (type(None), bool, int, float, str)
_LOADED = 1  # version of a tensor that was written into once


@dataclass(frozen=True)
class OnDisk:
    """Stands for a tensor. No tensor on the device "meta" does: its few bytes, in between the large
    blocks that come and go, would keep an allocator from using these again."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(tensor: Tensor) -> OnDisk:
        return OnDisk(tuple(tensor.shape), tensor.stride(), tensor.dtype)


@dataclass(frozen=True)
class Output:
    """What a block gave, as a tree: its leaves are tensors, or stand for them, and plain values."""

    leaves: list[Any]
    spec: TreeSpec

    @staticmethod
    def copied(output: Any, held: Output | None) -> Output | None:
        """A copy, for what comes later may write into it; None of what cannot be brought back as it
        was, such as a cache, or a view with gaps.

        Args:
            held: the loaded output of a block before; its tensors may have been passed on.
        """
        leaves, spec = tree_flatten(output)
        copies: list[Any] = []
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, _PLAIN):
                copies.append(leaf)
            elif not isinstance(leaf, Tensor) or not _can_be_kept(leaf):
                return None
            else:
                on_disk = held is not None and held._has(place, leaf)
                copies.append(OnDisk.of(leaf) if on_disk else leaf.clone())
        return Output(copies, spec)

    def on_disk(self) -> Output:
        """The same, once its tensors are."""
        leaves = [OnDisk.of(own) if isinstance(own, Tensor) else own for own in self.leaves]
        return Output(leaves, self.spec)

    def tree(self) -> Any:
        return tree_unflatten(self.leaves, self.spec)

    def _has(self, place: int, leaf: Tensor) -> bool:
        """Whether a tensor is that of a leaf, and nobody has written into it."""
        known = place < len(self.leaves) and leaf is self.leaves[place]
        return known and leaf._version == _LOADED


def _can_be_kept(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and torch.empty_like(tensor).stride() == tensor.stride()


class State:
    """Where a pass of one batch can go on from.

    Args:
        prefix: of the paths of its files.

    Attributes:
        calls: of blocks, from the start of a pass, that need not be made again.
    """

    def __init__(self, prefix: Path) -> None:
        self.calls = 0
        self._prefix = prefix
        self._given: dict[int, Output] = {}  # by list of blocks

    def load(self, device: torch.device) -> dict[int, Output]:
        """What the last block of each list gave that was run, with strides as they were."""
        return {
            key: Output([self._loaded(key, *at, device) for at in enumerate(own.leaves)], own.spec)
            for key, own in self._given.items()
        }

    def keep(self, calls: int, outputs: Mapping[int, Output]) -> None:
        """Go on later from the end of a block.

        Args:
            calls: of blocks, up to there.
            outputs: of the lists that came further.
        """
        self._prefix.parent.mkdir(parents=True, exist_ok=True)
        for key, output in outputs.items():
            for place, leaf in enumerate(output.leaves):
                if isinstance(leaf, Tensor):
                    save_file({_ENTRY: leaf.cpu().contiguous()}, self._path(key, place))
            self._given[key] = output.on_disk()
        self.calls = calls

    def _path(self, key: int, place: int) -> Path:
        return self._prefix.with_name(f"{self._prefix.name}-{key}-{place}.safetensors")

    def _loaded(self, key: int, place: int, leaf: Any, device: torch.device) -> Any:
        if not isinstance(leaf, OnDisk):
            return leaf
        found = torch.empty_strided(leaf.shape, leaf.stride, dtype=leaf.dtype, device=device)
        # Copied out of the mapped file, where memory is not aligned as a model's own: kernels may
        # give other bits for it.
        with safe_open(self._path(key, place), framework="pt") as file:
            return found.copy_(file.get_tensor(_ENTRY))


class States:
    """The states of all batches of all tasks, in both models that are run on them.

    Args:
        folder: for its files; None for a temporary one.
    """

    def __init__(self, folder: Path | None) -> None:
        # Every process keeps those of its tasks. What a killed one left is of no use: which blocks
        # it was of is in no file, and one pass makes it anew.
        if folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="iteris-"))
        else:
            self._folder = folder / f"states-{number()}"
            shutil.rmtree(self._folder, ignore_errors=True)
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._states: dict[tuple[str, int], tuple[State, State]] = {}

    def of(self, task: str, batch: int) -> tuple[State, State]:
        """Those of a task's batch in its own model and in the merged one; new on first use."""
        key = (task, batch)
        if key not in self._states:
            prefix = str(len(self._states))
            own, merged = (State(self._folder / f"{prefix}-{kind}") for kind in ("own", "merged"))
            self._states[key] = own, merged
        return self._states[key]

    def drop(self, task: str) -> None:
        """Forget a task. With the last one the folder goes."""
        self._states = {key: own for key, own in self._states.items() if key[0] != task}
        if not self._states:
            shutil.rmtree(self._folder, ignore_errors=True)
