"""Hidden states computed once and read from disk, memory-mapped, ever after."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyext.errors import UserError
from pyext.files import whole_file
from pyext_plugins.digest import digest
from pyext_plugins.side.model import SideModel, last_block_alone
from pyext_plugins.side.sherl import SherlSide
from pyext_plugins.side.table import Batch

INDEX = "taps.json"


class TapCache:
    """The taps of batches: one safetensors file a batch, which names them by their numbers.

    A batch's hidden states are computed once, in the batch that they are trained in: on the same
    machine, training from here gives the same bits as training through the backbone.

    Args:
        folder: made if need be. What it holds already is taken, if it is of the same backbone, taps
            and batches.
        model: computes what is missing.
        batches: of texts.

    Raises:
        UserError: the folder holds taps of something else, or cannot be made; or the last block,
            which SHERL runs, cannot be run without the others.
        ValueError: the model's backbone is in training mode: its dropout is on.
    """

    def __init__(self, folder: Path, model: SideModel, batches: Sequence[Batch]) -> None:
        if model.side_config.backbone_dropout:
            raise ValueError("backbone_dropout: hidden states differ from step to step; keep none")
        self.folder, self.model, self.batches = folder, model, batches
        if isinstance(model.side, SherlSide):
            try:
                with last_block_alone(model.layers):
                    pass
            except NotImplementedError as error:
                raise UserError(f"--cache: {error}") from error
        identity = {
            "backbone": digest(model.backbone),
            "taps": list(model.taps),
            "batches": _digest(batches),
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }
        index = folder / INDEX
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not index.exists():
                with whole_file(index) as path:
                    path.write_text(json.dumps(identity, indent=2) + "\n")
            found = json.loads(index.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"--cache: {folder} cannot be used: {error}") from error
        for key, wanted in identity.items():
            if found.get(key) != wanted:
                raise UserError(f"--cache: {folder} holds hidden states of other {key}; remove it")

    def fill(self, on_batch: Callable[[int], None] = lambda done: None) -> None:
        """Compute what is missing; ``on_batch`` is called with how many batches there are."""
        device = next(self.model.parameters()).device
        for number, batch in enumerate(self.batches):
            path = self._path(number)
            if not path.exists():
                taps = self.model.hidden_states(**batch.to(device).inputs)
                named = {str(k): tap.cpu() for k, tap in zip(self.model.taps, taps, strict=True)}
                with whole_file(path) as temporary:
                    save_file(named, temporary)
            on_batch(number + 1)

    def __getitem__(self, number: int) -> list[Tensor]:
        """The taps of a batch, in the order of the model's; read from disk as they are used.

        Raises:
            UserError: the file is missing or unreadable.
        """
        path = self._path(number)
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"--cache: {path} cannot be read: {error}") from error
        # Copied out of the mapping to where tensors begin: how a product is summed up may depend on
        # the alignment of its factors.
        return [tensors[str(k)].clone() for k in self.model.taps]

    @property
    def bytes(self) -> int:
        """On disk."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"


def _digest(batches: Sequence[Batch]) -> str:
    found = hashlib.sha256()
    for batch in batches:
        for name, tensor in sorted(batch.inputs.items()):
            found.update(f"{name} {list(tensor.shape)}".encode())
            found.update(tensor.numpy().tobytes())
    return found.hexdigest()
