"""The authors' checkpoints: one file a modality, each with the adapters of all up to it.

Under ``model`` in the file of the modality m stand, in the order of learning::

    m_Qformer.bert.encoder.layer.I.attention.self.query_adapter_list.E.down_proj.weight
    m_Qformer.bert.encoder.layer.I.attention.self.query_in_adapter_list.E.weight
    m_Qformer.bert.encoder.layer.I.attention.self.m_gate_adapter_query
    m_Qformer.bert.encoder.layer.I.attention.self.m_noise_gate_adapter_query

and the like for key, value and ``output.dense``, and for ``crossattention``. ``middle_proj``
repeats an in-adapter in the place where it was last used.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pyext.errors import UserError
from pyext_plugins.pathweave.files import copy_tensors, named_tensors
from pyext_plugins.pathweave.model import PathWeave
from pyext_plugins.pickled import read_tensors

_SITE = re.compile(
    r"bert\.(encoder\.layer\.\d+\.(?:attention|crossattention))"
    r"\.(?:self|output)\.(.*_adapter_.*)"
)
_BASE = re.compile(
    r"bert\.(encoder\.layer\.\d+\.(?:attention|crossattention))"
    r"\.(?:self|output)\.(query|key|value|dense)\.weight"
)
_ADAPTER = re.compile(r"(query|key|value|dense)_adapter_list\.(\d+)\.(.+)")
_INNER = re.compile(r"(query|key|value|dense)_in_adapter_list\.(\d+)\.(.+)")
_GATE = re.compile(r"(\w+?)_(noise_)?gate_adapter_(query|key|value|dense)")
_KEYS = {
    "down_proj.weight": "A",
    "down_proj.bias": "a",
    "up_proj.weight": "B",
    "up_proj.bias": "c",
    "scale": "scale",
}
_MISUSED = "crossattention.attention.value"  # see `load_authors`


def load_authors(model: PathWeave, files: Mapping[str, str | Path]) -> PathWeave:
    """Learn from checkpoints of the authors' code, read without unpickling any object.

    The file of a modality has the adapters of those before it, frozen while it was made: they must
    be the ones of their own files, to the bit. In-adapters are one list there that every modality
    trains on, so that each path needs the file that was written right after it was learned.

    In the authors' code the point clouds' adapters of cross-attention values are added to keys that
    were used already: they have no effect. Here they have one, of which a warning tells. Adapters
    of the projection to the language model are not read.

    Args:
        model: of a Q-Former with the sites of `qformer_sites`, nothing learned yet.
        files: by modality, in the order of learning: ``{"video": ..., "audio": ...}``.

    Returns:
        The model; all paths are frozen, the last one is set.

    Raises:
        ValueError: the model has learned something, or there are no files.
        UserError: a file cannot be read, lacks a tensor, has one left over or of another shape, or
            an adapter is not that of the earlier file; or the Q-Former that the file has with the
            adapters is not the model's. The model is then of no use.
    """
    if model.learned or not files:
        raise ValueError("files: expected one for each modality, for a model without modalities")
    order = list(files)
    found: dict[str, Tensor] = {}
    for number, (name, path) in enumerate(files.items()):
        tensors = _read(Path(path), name)
        _check_base(model, tensors, Path(path))
        _take(found, tensors, order[: number + 1], Path(path))
    rank = {name: _rank(found, name, Path(files[name])) for name in order}
    for name in order:
        model.add_modality(name, rank=rank[name])
    copy_tensors(named_tensors(model), found, Path(files[order[-1]]))
    if "pc" in order and any(site.endswith(_MISUSED) for site in model.sites):
        warnings.warn(
            "pc: in the authors' code its adapters of cross-attention values have no effect; here "
            "they have one, and outputs differ from those published",
            stacklevel=2,
        )
    model.model.requires_grad_(False)
    return model


def _rank(found: Mapping[str, Tensor], name: str, path: Path) -> int:
    ranks = [len(tensor) for key, tensor in found.items() if re.fullmatch(f"{name}/.*/A", key)]
    if not ranks:
        raise UserError(f"{path}: has no adapter of {name!r}")
    return ranks[0]


def _read(path: Path, name: str) -> dict[str, Tensor]:
    """What a file says of a modality's Q-Former, by name without the Q-Former's."""
    content = read_tensors(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{path}: expected a checkpoint with tensors under 'model'")
    start = f"{name}_Qformer."
    own = {
        key.removeprefix(start): t for key, t in content["model"].items() if key.startswith(start)
    }
    if not own or not all(isinstance(tensor, Tensor) for tensor in own.values()):
        raise UserError(f"{path}: has no tensors {start}*; is it the file of {name!r}?")
    return own


def _check_base(model: PathWeave, tensors: Mapping[str, Tensor], path: Path) -> None:
    """The frozen layers that a file holds beside its adapters are those of the model."""
    for key, tensor in tensors.items():
        parts = _BASE.fullmatch(key)
        site = None if parts is None else model.sites.get(_site(*parts.groups()))
        if site is not None and not torch.equal(tensor.float(), site.weight.cpu().float()):
            raise UserError(f"{path}: {key} is not the model's: it belongs to another Q-Former")


def _take(
    found: dict[str, Tensor], tensors: Mapping[str, Tensor], order: list[str], path: Path
) -> None:
    """Add what a file has of the last modality in the order; compare what it has of others."""
    for key, tensor in tensors.items():
        parts = _SITE.fullmatch(key)
        if parts is None:
            continue
        block, rest = parts.groups()
        place = _place(block, rest, order)
        if place is None:
            raise UserError(f"{path}: {key}: not known here")
        name, leaf = place
        if leaf is None:
            continue
        if leaf in ("Wg", "Wn") and tensor.shape[-1] != len(order):
            raise UserError(
                f"{path}: {key} is a gate for {tensor.shape[-1]} adapters, {order[-1]!r} has "
                f"{len(order)} in the order {', '.join(order)}"
            )
        value = tensor.T if leaf == "B" else tensor.reshape(()) if leaf == "scale" else tensor
        full = f"{name}/{leaf}"
        if full not in found:
            found[full] = value
        elif not torch.equal(found[full], value):
            raise UserError(
                f"{path}: {key} is not that of the file of {name.split('/')[0]!r}: the files are "
                "of other trainings, or not in the order of learning"
            )


def _place(block: str, rest: str, order: list[str]) -> tuple[str, str | None] | None:
    """``modality/site`` and the key there; without key where nothing is to be read; None where
    the name is not known."""
    own = order[-1]
    if parts := _ADAPTER.fullmatch(rest):
        kind, number, leaf = parts.groups()
        if leaf.startswith("middle_proj.") or int(number) >= len(order):
            return own, None  # a copy, or of a modality that is not learned yet
        return (
            (f"{order[int(number)]}/{_site(block, kind)}", _KEYS[leaf]) if leaf in _KEYS else None
        )
    if parts := _INNER.fullmatch(rest):
        kind, number, leaf = parts.groups()
        if leaf not in ("weight", "bias"):
            return None
        if int(number) >= len(order) - 1:
            return own, None
        letter = "F" if leaf == "weight" else "f"
        return f"{own}/{_site(block, kind)}", f"{letter}.{order[int(number)]}"
    if parts := _GATE.fullmatch(rest):
        name, noise, kind = parts.groups()
        known = "Wn" if noise else "Wg"
        return (f"{own}/{_site(block, kind)}", known) if name == own else None
    return None


def _site(block: str, kind: str) -> str:
    return f"{block}.output.dense" if kind == "dense" else f"{block}.attention.{kind}"
