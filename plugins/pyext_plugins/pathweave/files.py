"""Paths on disk: what was learned, in which order, and on which model.

``adapter_model.safetensors`` holds tensors named ``modality/site/parameter``, and
``adapter_config.json`` says what they belong to; the weights carry the same text. In-adapters are
named after the earlier modality that they reach.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pyext.errors import UserError
from pyext.files import whole_file
from pyext_plugins.digest import digest
from pyext_plugins.pathweave.model import Modality, PathWeave

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
KIND = "PATHWEAVE"


def save_paths(model: PathWeave, folder: str | Path, **facts: Any) -> None:
    """Write all modalities. Each file appears whole or not at all.

    Args:
        facts: more entries for the JSON file.

    Raises:
        ValueError: nothing was learned.
    """
    if not model.learned:
        raise ValueError("model: expected modalities that were learned, got none")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {**describe(model), **facts}
    tensors = {name: own.detach().cpu().contiguous() for name, own in named_tensors(model).items()}
    with whole_file(folder / WEIGHTS) as path:
        # One entry: safetensors writes several in any order.
        save_file(tensors, path, metadata={"pathweave": json.dumps(content)})
    with whole_file(folder / CONFIG) as path:
        path.write_text(json.dumps(content, indent=2) + "\n")


def load_paths(model: PathWeave, folder: str | Path) -> PathWeave:
    """Learn from a folder what was saved there; all of it is frozen, the last path is set.

    Args:
        model: with the sites it was saved of. One that learned modalities already must have the
            first ones of the folder, in the same order and of the same forms; their values are
            replaced.

    Returns:
        The model.

    Raises:
        UserError: the folder holds no paths, or such of another model, sites or order; where single
            tensors do not fit, the model has begun the modalities nevertheless.
    """
    folder = Path(folder)
    content = read_config(folder)
    learned = _learned(folder, content)
    tensors = _read(folder, content)
    _check_order(folder, learned, model)
    _check_base(folder, content, model)
    for modality in learned[len(model.learned) :]:
        try:
            model.add_modality(**asdict(modality))
        except ValueError as error:
            raise UserError(f"{folder / CONFIG}: {error}") from error
    copy_tensors(named_tensors(model), tensors, folder / WEIGHTS)
    model.model.requires_grad_(False)
    model.set_modality(learned[-1].name)
    return model


def read_config(folder: Path) -> dict[str, Any]:
    """What the JSON file of a folder says.

    Raises:
        UserError: there is none, or it is not one of these.
    """
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("peft_type") != KIND:
        raise UserError(f"{path}: not of paths: expected peft_type {KIND}")
    for key in ("order", "modalities", "sites", "plain"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{path}: not of paths: expected a list {key!r}")
    return content


def describe(model: PathWeave) -> dict[str, Any]:
    """What the tensors of a model belong to."""
    first = next(iter(model.sites.values()))
    return {
        "peft_type": KIND,
        "base_model_class": type(model.model).__name__,
        "base_sha256": base_digest(model),
        "order": model.modalities,
        "modalities": [asdict(modality) for modality in model.learned],
        "sites": list(model.sites),
        "plain": [name for name, path in model.sites.items() if path.plain],
        "dtype": str(first.linear.weight.dtype).removeprefix("torch."),
    }


def base_digest(model: PathWeave) -> str:
    """SHA-256 of the frozen model: its tensors by the names that they had without paths."""
    base = nn.Module()
    for name, tensor in model.model.state_dict().items():
        site = next((site for site in model.sites if name.startswith(f"{site}.")), None)
        if site is not None:
            rest = name.removeprefix(f"{site}.")
            if rest.startswith("stages."):
                continue
            name = f"{site}.{rest.removeprefix('linear.')}"
        base.register_buffer(name.replace(".", "/"), tensor)
    return digest(base)


def named_tensors(model: PathWeave) -> dict[str, Tensor]:
    """All that was learned, by ``modality/site/parameter``."""
    found: dict[str, Tensor] = {}
    for site in model.sites:
        for number, name in enumerate(model.modalities):
            stage = model.stage(site, name)
            for key, parameter in stage.named_parameters():
                found[f"{name}/{site}/{_file_key(key, model.modalities[:number])}"] = parameter
    return found


def _file_key(key: str, earlier: list[str]) -> str:
    """Of a stage's parameter: in-adapters go by the names of modalities, not by numbers."""
    first, _, rest = key.partition(".")
    if first == "own":
        return rest
    if first != "inner":
        return key
    number, _, leaf = rest.partition(".")
    return f"{'F' if leaf == 'weight' else 'f'}.{earlier[int(number)]}"


def copy_tensors(own: Mapping[str, Tensor], given: Mapping[str, Tensor], path: Path) -> None:
    """Values of the same names and shapes.

    Raises:
        UserError: one is lacking, left over, or of another shape; nothing is copied.
    """
    lacking, left = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    if lacking or left:
        what = f"lacks {lacking[0]}" if lacking else f"has {left[0]} left over"
        raise UserError(f"{path}: {what}")
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            gate = name.endswith(("/Wg", "/Wn")) and tensor.dim() == 2
            known = f", for {own[name].shape[-1]} adapters" if gate else ""
            raise UserError(
                f"{path}: {name}: expected shape {list(own[name].shape)}{known}, got "
                f"{list(tensor.shape)}"
            )
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)


def _learned(folder: Path, content: dict[str, Any]) -> list[Modality]:
    path, known = folder / CONFIG, {field.name for field in fields(Modality)}
    try:
        entries = cast(list[dict[str, Any]], content["modalities"])
        for entry in entries:
            left = sorted(set(entry) - known)
            if left:
                raise UserError(
                    f"{path}: {left[0]} {entry[left[0]]!r} of {entry.get('name')!r} is not "
                    f"supported; adapters have {', '.join(sorted(known))}, and no dropout"
                )
        learned = [Modality(**entry) for entry in entries]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not of paths: {error}") from error
    if not learned:
        raise UserError(f"{path}: expected at least one modality, got none")
    return learned


def _read(folder: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    trained = json.loads(metadata.get("pathweave", "{}"))
    names = [entry.get("name") for entry in content["modalities"]]
    for order in (names, content.get("order")):
        if order != trained.get("order"):
            raise UserError(
                f"{folder / CONFIG}: the order {order} is not that of training, "
                f"{trained.get('order')}: gates and in-adapters would meet other adapters"
            )
    if trained != content:
        differing = [key for key in content if content[key] != trained.get(key)]
        raise UserError(f"{folder}: {CONFIG} and {WEIGHTS} differ in {', '.join(differing)}")
    return tensors


def _check_order(folder: Path, learned: list[Modality], model: PathWeave) -> None:
    own = model.learned
    if learned[: len(own)] != own:
        raise UserError(
            f"{folder}: its modalities, {', '.join(m.name for m in learned)}, do not begin with "
            f"those of the model in order and form: {', '.join(model.modalities)}"
        )


def _check_base(folder: Path, content: dict[str, Any], model: PathWeave) -> None:
    own = describe(model)
    for key in ("sites", "plain", "base_sha256"):
        found, wanted = own[key], content.get(key)
        if found == wanted:
            continue
        if key == "base_sha256":
            raise UserError(
                f"{folder}: the paths belong to another model, {content.get('base_model_class')} "
                f"with sha256 {str(wanted)[:12]}, that given has {found[:12]}"
            )
        differing = sorted(set(found) ^ set(wanted or ()))
        what = f"differ in {differing[0]}" if differing else "have another order"
        raise UserError(f"{folder}: its {key} and those of the model {what}")
