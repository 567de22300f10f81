"""Arguments of an op by their names in its schema, and what of them is kept for its backward."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def names_of(op: str) -> list[str]:
    schema = getattr(torch.ops.pyext, op).default._schema
    return [argument.name for argument in schema.arguments]


def named(op: str, values: Sequence[Any]) -> SimpleNamespace:
    """The arguments of ``op`` by name."""
    return SimpleNamespace(**dict(zip(names_of(op), values, strict=True)))


def keep(ctx: Any, values: dict[str, Any]) -> None:
    """Keep tensors, lists of tensors and constants, all by name, for `kept`."""
    flat: list[Tensor | None] = []
    ctx.layout = {}
    ctx.constants = {}
    for name, value in values.items():
        if value is None or isinstance(value, Tensor):
            ctx.layout[name] = len(flat)
            flat.append(value)
        elif isinstance(value, list | tuple) and all(isinstance(x, Tensor) for x in value):
            ctx.layout[name] = slice(len(flat), len(flat) + len(value))
            flat += value
        else:
            ctx.constants[name] = value
    ctx.save_for_backward(*flat)


def kept(ctx: Any) -> SimpleNamespace:
    """What `keep` was given."""
    flat = ctx.saved_tensors
    tensors = {name: flat[place] for name, place in ctx.layout.items()}
    lists = {
        name: list(value) for name, value in tensors.items() if isinstance(value, tuple | list)
    }
    return SimpleNamespace(**ctx.constants, **(tensors | lists))
