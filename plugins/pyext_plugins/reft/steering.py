"""Steering single tokens, without training: what is in a subspace is set to what is wanted there.

The control experiment of MRT's paper: a token is given the content of another class, and the model
answers as if it had seen that class.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyext.interface.lowrank_checks import wide
from pyext.ops import lowrank as ops
from pyext_plugins.reft.editing import base_of, may_write


class Aim(NamedTuple):
    """A subspace and its content: R [r, D] with orthonormal rows, target [r], both float32."""

    R: Tensor
    target: Tensor


def aim(states: Tensor, labels: Tensor, wanted: int) -> Aim:
    """The subspace in which the classes differ from the wanted one, and its content there.

    R spans the means of the other classes minus the wanted one's; the target is where the wanted
    class's mean lies in it.

    Args:
        states: [n, D], hidden states at the tokens to steer.
        labels: [n] int64, their classes.
        wanted: the class to steer to.

    Raises:
        ValueError: the wanted class, or any other, has no state, or class means are dependent.
    """
    if states.dim() != 2 or labels.shape != states.shape[:1]:
        raise ValueError(
            f"states, labels: expected [n, D] and [n], got {list(states.shape)} and "
            f"{list(labels.shape)}"
        )
    classes = labels.unique().tolist()
    if wanted not in classes or len(classes) < 2:
        raise ValueError(f"wanted: expected one of several classes, got {wanted} of {classes}")
    means = {label: states[labels == label].float().mean(0) for label in classes}
    own = means.pop(wanted)
    R = ops.orthonormalize(torch.stack([mean - own for mean in means.values()])).R
    return Aim(R, R @ own)


@contextmanager
def steer(
    model: nn.Module, path: str, to: Aim, where: Tensor, strength: float = 1.0
) -> Iterator[None]:
    """While open, chosen tokens have the wanted content: ``h' = h + s R^T (target - R h)``.

    Everything outside the subspace, and all other tokens, stay to the bit what they were. While
    generating with a KV cache, tokens that are read one at a time pass as they are. In a block with
    editors, steering comes first.

    Args:
        model: a transformers model, or a peft model of one.
        path: the module whose output is steered, as "model.language_model.layers.0".
        to: see `aim`.
        where: [B, S] bool, the tokens to steer.
        strength: s; 1 sets the content, 0 leaves it.

    Raises:
        ValueError: there is no such module, or its output has other tokens than ``where``.
    """
    try:
        module = base_of(model).get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"path: {type(model).__name__} has no {path!r}") from error
    factors = -to.R.unsqueeze(0), to.R.unsqueeze(0), to.target.unsqueeze(0)
    rows = where.flatten().nonzero().flatten()

    def hook(own: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        if hidden.shape[:-1] != where.shape:
            if hidden.dim() == 3 and hidden.shape[1] == 1:
                return None
            raise ValueError(
                f"where: expected [B, S] of the hidden states, {list(hidden.shape[:-1])}, got "
                f"{list(where.shape)}"
            )
        dtype = wide(hidden)
        edited = ops.rows(
            hidden.contiguous(),
            *(factor.to(hidden.device, dtype) for factor in factors),
            rows=rows.to(hidden.device),
            scale=torch.full((1,), strength, dtype=dtype, device=hidden.device),
            inplace=may_write(hidden, args),
        )
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    handle = module.register_forward_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()
