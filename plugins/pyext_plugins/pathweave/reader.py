"""A Q-Former with paths that classifies features of encoders, and what each modality has beside.

Like the authors' code it trains, with the adapters, the queries, a LayerNorm of the encoder's
features, and a projection of them where they are not of the Q-Former's width. A linear head on the
mean of the queries stands where the language model is.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyext.errors import UserError
from pyext.files import whole_file
from pyext_plugins.pathweave.files import CONFIG, copy_tensors, load_paths, read_config, save_paths
from pyext_plugins.pathweave.loading import Base
from pyext_plugins.pathweave.model import PathWeave
from pyext_plugins.pathweave.paths import Gate
from pyext_plugins.pathweave.qformers import qformer_sites

PIECES = "pieces.safetensors"


@dataclass(frozen=True)
class Sizes:
    """Of a modality's pieces: the width of its features, queries, and classes."""

    width: int
    queries: int
    classes: int


class Pieces(nn.Module):
    """What a modality has outside the Q-Former."""

    def __init__(self, sizes: Sizes, base: Base) -> None:
        super().__init__()
        config = cast(Any, base.qformer).config
        wanted = config.encoder_hidden_size
        self.sizes = sizes
        self.norm = nn.LayerNorm(sizes.width)
        same = sizes.width == wanted
        self.projection = nn.Identity() if same else nn.Linear(sizes.width, wanted)
        queries = torch.empty(1, sizes.queries, config.hidden_size)
        if base.queries is not None and base.queries.shape[1] == sizes.queries:
            queries.copy_(base.queries)
        else:
            nn.init.normal_(queries, std=config.initializer_range)
        self.queries = nn.Parameter(queries)
        self.head = nn.Linear(config.hidden_size, sizes.classes)


class Reader(nn.Module):
    """Logits of features, on the path that is set.

    Args:
        base: its Q-Former becomes part of this, and is frozen.
    """

    def __init__(self, base: Base) -> None:
        super().__init__()
        self.base = base
        self.paths = PathWeave(base.qformer, qformer_sites(base.qformer))
        self.pieces = nn.ModuleDict()

    def add_modality(self, name: str, rank: int, gate: Gate, reuse: bool, sizes: Sizes) -> None:
        """Begin one more; all so far is frozen.

        Raises:
            ValueError: see `PathWeave.add_modality`.
        """
        self.paths.add_modality(name, rank=rank, gate=gate, reuse=reuse)
        self.pieces.requires_grad_(False)
        self.pieces[_key(name)] = Pieces(sizes, self.base).to(self.base.device)

    @property
    def own(self) -> Pieces:
        """Those of the modality whose path is set."""
        name = self.paths.modality
        if name is None:
            raise ValueError("modality: expected one to be set, got None")
        return cast(Pieces, self.pieces[_key(name)])

    @property
    def head(self) -> nn.Linear:
        return self.own.head

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, classes] of features [B, tokens, width]."""
        own = self.own
        output = self.paths(
            query_embeds=own.queries.expand(len(features), -1, -1),
            encoder_hidden_states=own.projection(own.norm(features)),
            **({"input_ids": None} if self.base.reads_text else {}),
        )
        return own.head(output.last_hidden_state.mean(1))

    def save(self, folder: Path) -> None:
        """Write paths and pieces."""
        sizes = {name: asdict(cast(Pieces, self.pieces[_key(name)]).sizes) for name in self.names}
        save_paths(self.paths, folder, pieces=sizes)
        tensors = {name: tensor.detach().cpu() for name, tensor in self._named().items()}
        with whole_file(folder / PIECES) as path:
            save_file(tensors, path, metadata={"pieces": json.dumps(sizes)})

    def load(self, folder: Path) -> None:
        """Learn what `save` wrote; all of it is frozen.

        Raises:
            UserError: the folder holds something else, or belongs to another model.
        """
        pieces: Any = read_config(folder).get("pieces")
        try:
            sizes = {name: Sizes(**own) for name, own in pieces.items()}
        except (AttributeError, TypeError) as error:
            raise UserError(f"{folder / CONFIG}: not of a training: no sizes of pieces") from error
        load_paths(self.paths, folder)
        if list(sizes) != self.names:
            raise UserError(f"{folder / CONFIG}: pieces of {list(sizes)}, paths of {self.names}")
        for name, own in sizes.items():
            self.pieces[_key(name)] = Pieces(own, self.base).to(self.base.device)
        try:
            tensors = load_file(folder / PIECES)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder / PIECES} cannot be read: {error}") from error
        copy_tensors(self._named(), tensors, folder / PIECES)
        self.pieces.requires_grad_(False)

    @property
    def names(self) -> list[str]:
        return self.paths.modalities

    def _named(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": tensor
            for name in self.names
            for key, tensor in self.pieces[_key(name)].state_dict().items()
        }


def _key(name: str) -> str:
    """Modules may not have the names of attributes, such as "keys"."""
    return f"of_{name}"


def load_reader(folder: Path, model: Path) -> Reader:
    """What a training left in a folder, ready to read: ``reader(features)``.

    Args:
        model: the folder with the Q-Former that it was trained on.

    Raises:
        UserError: a folder holds something else, or the Q-Former is another.
    """
    from pyext_plugins.pathweave.loading import load_base

    reader = Reader(load_base(model))
    reader.load(folder)
    return reader.eval()
