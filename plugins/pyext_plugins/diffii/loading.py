"""A model from a folder of diffusers', with learned tokens and LoRA if there are any."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DModel

from pyext.errors import UserError, one_line
from pyext_plugins.diffii.models import Model
from pyext_plugins.diffii.pixels import PixelModel
from pyext_plugins.diffii.stable_diffusion import PROMPT, StableDiffusion

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TEXT, PIXELS = ("StableDiffusionPipeline",), ("DDPMPipeline", "DDIMPipeline")


def load_model(
    folder: Path,
    classes: Sequence[str],
    *,
    device: torch.device,
    dtype: str = "float32",
    spacing: str = "trailing",
    prompt: str | None = None,
    concepts: Path | None = None,
    null_label: int | None = None,
    embeddings: Sequence[Path] = (),
    lora: Path | None = None,
) -> Model:
    """Load a Stable Diffusion, or a model of pixels, from files alone.

    Args:
        folder: as ``save_pretrained`` of a pipeline leaves it.
        classes: of the pictures, sorted.
        dtype: of weights and latents: "float32", "float16" or "bfloat16".
        spacing: see `schedule.make_schedulers`.
        prompt: see `StableDiffusion`.
        concepts: JSON file, an object from class to what stands for it: a text, or the label of a
            model of pixels. By default a class's name, or its number in the order of names.
        null_label: see `PixelModel`.
        embeddings: files of learned tokens (textual inversion).
        lora: safetensors file of LoRA weights.

    Raises:
        UserError: the folder holds no such model, or the options do not fit it.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype: expected {', '.join(DTYPES)}, got {dtype!r}")
    kind = _kind(folder)
    meant = read_concepts(concepts, int if kind in PIXELS else str)
    try:
        if kind in TEXT:
            if null_label is not None:
                raise UserError("--null-label: Stable Diffusion has no labels, but an empty prompt")
            pipeline = StableDiffusionPipeline.from_pretrained(
                folder,
                local_files_only=True,
                safety_checker=None,
                requires_safety_checker=False,
            )
            _adapt(pipeline, embeddings, lora)
            return StableDiffusion(
                _placed(pipeline, device, dtype),
                PROMPT if prompt is None else prompt,
                meant,
                spacing,
            )
        unfit = {"--prompt": prompt, "--embedding": tuple(embeddings), "--lora": lora}
        for option, given in unfit.items():
            if given:
                raise UserError(f"{option}: {folder} is a {kind}, which reads no text")
        unet = UNet2DModel.from_pretrained(folder, subfolder="unet", local_files_only=True)
        config = DDPMScheduler.load_config(folder, subfolder="scheduler", local_files_only=True)
        labels = meant or {name: number for number, name in enumerate(classes)}
        return PixelModel(_placed(unet, device, dtype), config, labels, null_label, spacing)
    except UserError:
        raise
    # diffusers raises what its parts raise: no narrower class covers a broken folder.
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"--model: {folder} cannot be loaded: {one_line(error)}") from error


def _placed(model: Any, device: torch.device, dtype: str) -> Any:
    # What is float32 already is not cast: diffusers has warnings for that.
    return model.to(device) if dtype == "float32" else model.to(device, DTYPES[dtype])


def _kind(folder: Path) -> str:
    """The class of pipeline that a folder says it is."""
    index = folder / "model_index.json"
    try:
        kind = json.loads(index.read_text())["_class_name"]
    except OSError as error:
        raise UserError(
            f"--model: expected a folder of a diffusers pipeline, with model_index.json, got "
            f"{folder}: {error.strerror}"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"--model: {index} names no pipeline: {error}") from error
    if kind not in TEXT + PIXELS:
        raise UserError(f"--model: expected {', '.join(TEXT + PIXELS)}, {folder} is a {kind}")
    return str(kind)


def read_concepts(path: Path | None, kind: type) -> dict[str, Any]:
    """An object from class to text or number, from a JSON file.

    Raises:
        UserError: it is none.
    """
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"--concepts: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--concepts: {path} is not JSON: {error}") from error
    wanted = "number" if kind is int else "text"
    if not isinstance(found, Mapping) or not all(type(v) is kind for v in found.values()):
        raise UserError(f"--concepts: expected an object from class to {wanted} in {path}")
    return dict(found)


def _adapt(
    pipeline: StableDiffusionPipeline, embeddings: Sequence[Path], lora: Path | None
) -> None:
    for path in embeddings:
        _load("--embedding", path, lambda p: pipeline.load_textual_inversion(str(p)))
    if lora is not None:
        _load("--lora", lora, lambda p: pipeline.load_lora_weights(p.parent, weight_name=p.name))


def _load(option: str, path: Path, load: Any) -> None:
    if not path.is_file():
        raise UserError(f"{option}: expected a file, got {path}")
    try:
        load(path)
    except Exception as error:  # safetensors, peft and diffusers each have their own
        raise UserError(f"{option}: {path} cannot be loaded: {one_line(error)}") from error


def read_suffixes(path: Path | None) -> tuple[str, ...]:
    """Texts, one a line; empty lines are left out.

    Raises:
        UserError: the file cannot be read, or has none.
    """
    if path is None:
        return ()
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--suffixes: {path} cannot be read: {one_line(error)}") from error
    found = tuple(line for line in lines if line)
    if not found:
        raise UserError(f"--suffixes: expected a text a line, {path} has none")
    return found
