"""LoRAs trained by peft, and kept as the folders that peft writes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyext.errors import UserError
from pyext.files import whole_folder
from pyext_plugins.iteris.adapters import LowRank, load_adapter

MADE_BY = "made_by.json"


def cached(folder: Path, settings: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """A folder that ``make`` fills; as it is if it was made under the same settings.

    Raises:
        UserError: it is there, and was made under others.
    """
    found = folder / MADE_BY
    wanted = json.dumps(settings, sort_keys=True)
    if folder.exists():
        if found.is_file() and found.read_text() == wanted:
            return folder
        raise UserError(f"--output: {folder} was made by other settings; remove it")
    with whole_folder(folder) as temporary:
        make(temporary)
        (temporary / MADE_BY).write_text(wanted)
    return folder


def with_lora(model: nn.Module, rank: int, alpha: int, targets: list[str] | str) -> Any:
    """The model as peft wraps it, with a fresh LoRA that alone is trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
    with warnings.catch_warnings():
        # On a model without a config, and an old name that peft asks transformers for.
        warnings.simplefilter("ignore")
        return get_peft_model(cast(Any, model), config)


def save_lora(model: Any, folder: Path) -> None:
    """Write the LoRA of a model that `with_lora` gave."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)


def updates_of(folder: Path) -> dict[str, LowRank]:
    """Of the LoRA in a folder."""
    return load_adapter(folder).modules


def fit(
    parameters: list[nn.Parameter],
    loss: Callable[[Tensor], Tensor],
    samples: int,
    steps: int,
    batch: int,
    step_size: float,
    seed: int,
) -> None:
    """AdamW with one cycle of step sizes, on random batches.

    Args:
        loss: of the samples of these numbers.
        samples: how many there are.
    """
    optimizer = torch.optim.AdamW(parameters, lr=step_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, step_size, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        value = loss(torch.randperm(samples, generator=generator)[:batch])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
