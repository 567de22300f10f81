"""The first modality as a LoRA for peft."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pyext.files import whole_folder
from pyext_plugins.pathweave.files import WEIGHTS
from pyext_plugins.pathweave.model import PathWeave
from pyext_plugins.pathweave.paths import Stage

PREFIX = "base_model.model."


def export_lora(model: PathWeave, folder: str | Path, name: str | None = None) -> None:
    """Write a modality as a folder that ``PeftModel.from_pretrained`` loads on the bare model.

    What a modality without a gate adds is affine in the input: ``B A x`` and a constant, which
    peft has as ``lora_bias=True``. So it is for the first modality, and for any whose gate is
    "none"; the rank is then the sum of those on its path. A gate depends on the token, which no
    LoRA does.

    Args:
        folder: must not exist yet.
        name: by default the first modality.

    Raises:
        ValueError: the modality is not learned, or has a gate.
        UserError: the folder exists.
    """
    from peft import LoraConfig

    name = name if name is not None or not model.learned else model.modalities[0]
    if name not in model.modalities:
        raise ValueError(f"unknown modality {name!r}; learned: {', '.join(model.modalities)}")
    stages = {site: model.stage(site, name) for site in model.sites}
    for site, stage in stages.items():
        if stage.Wg is not None:
            raise ValueError(
                f"{name!r} has a gate at {site}, which depends on the token: it is no LoRA; the "
                f"first modality, {model.modalities[0]!r}, is one"
            )
    tensors, ranks = {}, {}
    for site, stage in stages.items():
        A, B, constant = _affine(stage)
        tensors[f"{PREFIX}{site}.lora_A.weight"] = A
        tensors[f"{PREFIX}{site}.lora_B.weight"] = B
        tensors[f"{PREFIX}{site}.lora_B.bias"] = constant
        ranks[site] = len(A)
    most = max(ranks.values())
    config = LoraConfig(
        r=most,
        lora_alpha=most,  # scaling 1: scales are in B
        lora_bias=True,
        target_modules=list(model.sites),
        rank_pattern={site: rank for site, rank in ranks.items() if rank != most},
        alpha_pattern={site: rank for site, rank in ranks.items() if rank != most},
        base_model_name_or_path=getattr(model.model, "name_or_path", "") or None,
        inference_mode=True,
    )
    with whole_folder(Path(folder)) as path, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(path))


@torch.no_grad()
def _affine(stage: Stage) -> tuple[Tensor, Tensor, Tensor]:
    """A [R, Din], B [Do, R] and a constant [Do]: the adapters of a path side by side."""
    downs: list[Tensor] = []
    ups: list[Tensor] = []
    constant = torch.zeros_like(stage.own.c)
    for e, adapter in enumerate(stage.adapters):
        A: Tensor = adapter.A
        a: Tensor = adapter.a
        if e < len(stage.inner):
            layer = cast(nn.Linear, stage.inner[e])
            A, a = layer.weight @ A, layer(a)
        downs.append(A)
        ups.append(adapter.scale * adapter.B.T)
        constant += adapter.scale * (a @ adapter.B + adapter.c)
    parts = torch.cat(downs), torch.cat(ups, 1), constant
    return parts[0].cpu().contiguous(), parts[1].cpu().contiguous(), parts[2].cpu()
