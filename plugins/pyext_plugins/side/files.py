"""Adapters on disk: what was trained, beside a text that says on which backbone and how.

The folder looks like one of peft's: ``adapter_model.safetensors`` and ``adapter_config.json``. It
is not peft's to load: peft registers only methods that its own list of types names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyext.errors import UserError
from pyext.files import whole_file
from pyext_plugins.digest import digest
from pyext_plugins.side.base import Beside
from pyext_plugins.side.config import SideConfig, config_from_json
from pyext_plugins.side.model import attach

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def side_model(model: nn.Module) -> Beside:
    """The one inside a model.

    Raises:
        ValueError: there is none.
    """
    for module in model.modules():
        if isinstance(module, Beside):
            return module
    raise ValueError(f"model: expected a side network in it, {type(model).__name__} holds none")


def trained(model: nn.Module) -> dict[str, Tensor]:
    """What a model does not have from its backbone, by name: parameters being trained, and all
    tensors of side networks."""
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, module in model.named_modules():
        if isinstance(module, Beside):
            prefix = f"{name}.side." if name else "side."
            wanted |= {prefix + key for key in module.side.state_dict()}
    return {name: tensor for name, tensor in model.state_dict().items() if name in wanted}


def save_adapter(model: nn.Module, folder: str | Path, **facts: Any) -> None:
    """Write what was trained of a model with a side network in it, head included, and its config.

    Args:
        facts: more entries for the JSON file.

    Raises:
        ValueError: there is no side network in the model.
    """
    side = side_model(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trained(model).items()}
    with whole_file(folder / WEIGHTS) as path:
        save_file(tensors, path, metadata={"format": "pt"})
    content = {
        "peft_type": side.side_config.method.upper(),
        "base_model_name_or_path": getattr(side.backbone, "name_or_path", ""),
        "backbone_class": type(side.backbone).__name__,
        "backbone_sha256": digest(side.backbone),
        "side": side.side_config.as_json(),
        **facts,
    }
    with whole_file(folder / CONFIG) as path:
        path.write_text(json.dumps(content, indent=2) + "\n")


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put a saved side network beside the encoder of a model, as `attach` does, with its weights.

    Args:
        model: with the backbone that the side network was trained on, and a head of the same names
            if one was saved. One that holds a side network of this config already gets its weights.

    Returns:
        The model; in evaluation mode.

    Raises:
        UserError: the folder holds no adapter, or one of another backbone or head.
    """
    folder = Path(folder)
    config, content = read_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    if not any(isinstance(module, Beside) for module in model.modules()):
        model = attach(model, config)
    found, wanted = digest(side_model(model).backbone), content.get("backbone_sha256")
    if found != wanted:
        raise UserError(
            f"{folder}: the side network belongs to another backbone, "
            f"{content.get('base_model_name_or_path') or 'unnamed'}: its weights have sha256 "
            f"{str(wanted)[:12]}, those given {found[:12]}"
        )
    own = trained(model)
    if set(own) != set(tensors):
        differing = ", ".join(sorted(set(own) ^ set(tensors))[:3])
        raise UserError(f"{folder / WEIGHTS}: not the weights of this model: {differing}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{folder / WEIGHTS}: {name}: expected shape {list(own[name].shape)}, got "
                f"{list(tensor.shape)}"
            )
    model.load_state_dict(tensors, strict=False)
    return model.eval()


def read_config(folder: Path) -> tuple[SideConfig, dict[str, Any]]:
    """The config in a folder, and all that the JSON file says.

    Raises:
        UserError: there is none, or it is not one of these.
    """
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text())
        return config_from_json(content["side"]), content
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the config of a side network: {error}") from error
