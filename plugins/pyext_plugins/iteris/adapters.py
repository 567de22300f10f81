"""LoRA adapters on disk, in peft's form: read without peft or the base, and written for peft."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyext.errors import UserError
from pyext.files import whole_folder
from pyext_plugins.iteris.refusals import refuse_keys, refuse_settings

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
FACTORS = {".lora_A.weight": "a", ".lora_B.weight": "b"}


@dataclass(frozen=True)
class LowRank:
    """An update of one weight, ``scale * b @ a`` [o, d].

    Args:
        a: [r, d].
        b: [o, r].
        scale: alpha / r, or alpha / sqrt(r) with rank stabilisation.
    """

    a: Tensor
    b: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the update: o, d."""
        return self.b.shape[0], self.a.shape[1]

    def delta(self) -> Tensor:
        """The update itself, float64, [o, d]."""
        return self.scale * (self.b.double() @ self.a.double())


@dataclass(frozen=True)
class Adapter:
    """A LoRA: low-rank updates of some modules of a base.

    Args:
        name: the folder's.
        folder: where it was read.
        config: what adapter_config.json says.
        base: of which model, as its config names it; empty where it does not.
        modules: update by the module's name in the base.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    base: str
    modules: dict[str, LowRank] = field(repr=False)


def load_adapter(folder: str | Path) -> Adapter:
    """Read a folder that peft wrote. Nothing is unpickled.

    Ranks, alphas, their patterns per module and rank stabilisation are taken from its config.

    Raises:
        UserError: a file is missing or truncated, a weight is not finite, a rank is not the
            config's, the update is more than B A (DoRA, biases, whole modules, embeddings), or a
            key is left over.
    """
    folder = Path(folder)
    config = _read_config(folder)
    tensors = _read_weights(folder)
    refuse_settings(folder, config, tensors)
    factors: dict[str, dict[str, Tensor]] = {}
    left = []
    for key, tensor in tensors.items():
        end = next((end for end in FACTORS if key.endswith(end)), None)
        if end is None:
            left.append(key)
            continue
        module = key.removeprefix(PREFIX).removesuffix(end)
        factors.setdefault(module, {})[FACTORS[end]] = tensor
    refuse_keys(folder, left)
    modules = {
        module: _checked(folder, config, module, own) for module, own in sorted(factors.items())
    }
    if not modules:
        raise UserError(f"{folder / WEIGHTS}: expected factors lora_A and lora_B, got none")
    base = config.get("base_model_name_or_path") or ""
    return Adapter(folder.resolve().name, folder, config, base, modules)


def save_adapter(
    folder: str | Path,
    modules: Mapping[str, LowRank],
    *,
    base: str = "",
    dtype: torch.dtype = torch.float32,
    config: Mapping[str, Any] | None = None,
    beside: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write a folder that ``PeftModel.from_pretrained`` loads. It appears whole or not at all.

    Scales go into B, so that peft's own, ``lora_alpha / r``, is 1 everywhere.

    Args:
        folder: must not exist yet.
        modules: update by the module's name in the base.
        base: name or path of the base, for the config.
        dtype: of the weights on disk.
        config: more entries for adapter_config.json, such as ``task_type`` or ``fan_in_fan_out``.
        beside: given the folder while it still has another name, for more files.

    Raises:
        UserError: the folder exists already, there are no modules, or it cannot be written.
    """
    folder = Path(folder)
    if not modules:
        raise UserError("modules: expected at least one, got none")
    tensors = {}
    for module, update in modules.items():
        scaled = update.b.double() * update.scale
        for end, factor in ((".lora_A.weight", update.a), (".lora_B.weight", scaled)):
            tensors[f"{PREFIX}{module}{end}"] = factor.detach().to("cpu", dtype).contiguous()
    content = {**_config_of(modules), "base_model_name_or_path": base or None, **(config or {})}
    try:
        with whole_folder(folder) as temporary:
            save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
            text = json.dumps(content, indent=2) + "\n"
            (temporary / CONFIG).write_text(text)
            beside(temporary)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output: cannot write to {folder}: {error}") from error


def _config_of(modules: Mapping[str, LowRank]) -> dict[str, Any]:
    """What peft must know: the commonest rank, and the others by module."""
    ranks = [update.rank for update in modules.values()]
    common = max(sorted(set(ranks)), key=ranks.count)
    # peft takes the first key that a module's name ends with: the longest must come first.
    names = sorted(modules, key=len, reverse=True)
    others = {name: modules[name].rank for name in names if modules[name].rank != common}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "bias": "none",
        "r": common,
        "lora_alpha": common,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(modules),
    }


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not folder.is_dir():
        raise UserError(f"{folder}: expected the folder of an adapter, there is none")
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: expected JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").exists()
        hint = "; adapter_model.bin is a pickle, which is never read" if pickled else ""
        raise UserError(f"{folder}: expected a file {WEIGHTS}{hint}")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _checked(
    folder: Path, config: Mapping[str, Any], module: str, factors: Mapping[str, Tensor]
) -> LowRank:
    """Both factors of one module, of the shapes and the rank that they must have."""
    where = f"{folder / WEIGHTS}: {module}"
    if set(factors) != {"a", "b"}:
        got = "lora_A" if "a" in factors else "lora_B"
        raise UserError(f"{where}: expected lora_A and lora_B, got {got} alone")
    a, b = factors["a"], factors["b"]
    if a.ndim != 2 or b.ndim != 2:
        raise UserError(
            f"{where}: expected matrices, got lora_A {list(a.shape)} and lora_B {list(b.shape)} "
            "(convolutions are not merged)"
        )
    for name, factor in (("lora_A", a), ("lora_B", b)):
        if not factor.is_floating_point():
            raise UserError(f"{where}: {name}: expected floating-point numbers, got {factor.dtype}")
        if not torch.isfinite(factor).all():
            raise UserError(f"{where}: {name} has numbers that are not finite")
    rank, alpha = _rank_and_alpha(folder, config, module)
    if a.shape[0] != rank or b.shape[1] != rank:
        raise UserError(
            f"{where}: expected rank {rank}, as its config says, got lora_A {list(a.shape)} and "
            f"lora_B {list(b.shape)}"
        )
    return LowRank(a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _rank_and_alpha(folder: Path, config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Of a module: the config's, or those of the first pattern that fits it, as peft has it."""
    from peft.utils.other import get_pattern_key

    found = []
    for common, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        special = config.get(pattern) or {}
        value = special.get(get_pattern_key(list(special), module), config.get(common))
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise UserError(
                f"{folder / CONFIG}: {common} of {module}: expected a number above 0, got {value!r}"
            )
        found.append(value)
    return int(found[0]), float(found[1])
