"""Weights under the names of the authors' code, given those of our side networks.

Names are those that the code of UniPT (commit 3fa457d) and SHERL (36b4496) gives the modules: a
checkpoint of theirs has them behind the prefix of whatever module holds the side network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# In CLIP-ViL the first tap and the others have lists of their own.
_UNIPT_DOWN = (
    (re.compile(r"downsample_layers\.(\d+)\.(.+)"), 0),
    (re.compile(r"side_downsamples_l\.(\d+)\.(.+)"), 1),
    (re.compile(r"side_first_downsample_l()\.(.+)"), 0),
)
_UNIPT_QUERY = re.compile(r"identity_layers\.(\d+)\.(.+)")
_NORM_FIELDS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_UNIPT_REST = {
    "projection_layer": "proj",
    "side_projection_l": "proj",
    "upsample_layer": "up",
    "side_final_upsample_l": "up",
    "gate_layer": "gate",
    "side_gate_layer_l": "gate",
}
_SHERL_DOWN = re.compile(r"hor_block\.(\d+)\.(.+)")
_SHERL_REST = {
    "fc_out": "up",
    "conv_out": "up",
    "fc_attn": "gate",
    "guide_block.fc_attn": "gate",
}


def from_authors(method: str, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The state dict of our side network out of one of the authors' code.

    Args:
        method: "unipt" or "sherl".
        state: their tensors by name; those without ``prefix`` are left out. Convolutions of 1 x 1
            become matrices: the result is for `UniptStages` or `SherlStages` then, else for
            `UniptSide` or `SherlSide`.
        prefix: of the module that holds the side network, with its dot.

    Raises:
        ValueError: a name behind the prefix is not known; it is named.
    """
    own = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    parts: dict[str, dict[str, Tensor]] = {}
    result: dict[str, Tensor] = {}
    for name, tensor in own.items():
        flat = tensor.flatten(1) if tensor.dim() == 4 else tensor
        if method == "sherl" and name == "gate_params":
            result["gamma"] = flat.reshape(1)
            continue
        part, rest = (_unipt_part if method == "unipt" else _sherl_part)(name)
        parts.setdefault(part, {})[rest] = flat
    norms: dict[int, dict[str, Tensor]] = {}
    for part, tensors in parts.items():
        kind, _, index = part.partition(".")
        if kind == "down":
            norms[int(index)] = _take_down(int(index), tensors, result)
        elif kind == "gate":
            result |= {f"gate.{key.rpartition('.')[2]}": t for key, t in tensors.items()}
        else:
            _take_tail(part, tensors, result)
    for field in _NORM_FIELDS[:4]:
        rows = [norms[k][field] for k in sorted(norms) if field in norms[k]]
        if rows:
            batch = "running_mean" in norms[0]
            result[f"norm.{field}" if batch else f"norm_{field}"] = torch.stack(rows)
    return result


def _unipt_part(name: str) -> tuple[str, str]:
    for pattern, first in _UNIPT_DOWN:
        if found := pattern.fullmatch(name):
            return f"down.{int(found[1] or 0) + first}", found[2]
    if found := _UNIPT_QUERY.fullmatch(name):
        return f"query.{found[1]}", found[2]
    return _rest(name, _UNIPT_REST)


def _sherl_part(name: str) -> tuple[str, str]:
    if found := _SHERL_DOWN.fullmatch(name):
        return f"down.{found[1]}", found[2]
    return _rest(name, _SHERL_REST)


def _rest(name: str, known: Mapping[str, str]) -> tuple[str, str]:
    for theirs, ours in known.items():
        if name.startswith(f"{theirs}."):
            return ours, name.removeprefix(f"{theirs}.")
    raise ValueError(f"state: {name!r} is not a name of the authors' side network")


def _modules(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors of each module of a part, in the order of the modules' numbers."""
    names = {key.rpartition(".")[0] for key in tensors}
    ordered = sorted(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    dotted = [f"{name}." if name else "" for name in ordered]
    return [
        {field: tensors[name + field] for field in _NORM_FIELDS if name + field in tensors}
        for name in dotted
    ]


def _put(name: str, module: Mapping[str, Tensor], result: dict[str, Tensor]) -> None:
    result |= {f"{name}.{field}": tensor for field, tensor in module.items()}


def _take_down(
    k: int, tensors: Mapping[str, Tensor], result: dict[str, Tensor]
) -> dict[str, Tensor]:
    """A tap's matrices; the tensors of its norm are returned, to be stacked."""
    modules = _modules(tensors)
    matrices = [module for module in modules if module["weight"].dim() == 2]
    for name, module in zip(("down", "value", "open"), matrices, strict=False):
        _put(f"{name}.{k}", module, result)
    return next((module for module in modules if module["weight"].dim() == 1), {})


def _take_tail(name: str, tensors: Mapping[str, Tensor], result: dict[str, Tensor]) -> None:
    """Proj, Up or a query: matrices, then at most one norm."""
    modules = _modules(tensors)
    norms = [module for module in modules if module["weight"].dim() == 1]
    stages = any("running_mean" in module for module in norms)
    matrices = [module for module in modules if module["weight"].dim() == 2]
    for number, module in enumerate(matrices):
        _put(f"{name}.{number}" if name == "proj" and not stages else name, module, result)
    for module in norms:
        _put(f"{name}_norm", module, result)
