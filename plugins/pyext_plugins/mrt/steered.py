"""The demo's control experiment: the answer's token gets the content of another digit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyext.ops import lowrank as ops
from pyext_plugins.mrt import digits
from pyext_plugins.mrt.digits import DIGITS, Digits, Task
from pyext_plugins.reft.steering import Aim, aim, steer

BLOCK = "model.language_model.layers.0"
CLASSES = 10
PICTURES = 200  # of those held out


@dataclass(frozen=True)
class Steered:
    """Shares (%) of pictures of other digits that are answered with the wanted one."""

    untouched: float
    steered: float
    random: float  # in a random subspace of the same rank, to the same mean


@torch.no_grad()
def counterfactual(base: nn.Module, data: Digits) -> Steered:
    """Steer to each digit all pictures of others, at the token that answers, behind one block.

    Subspace and means are those of the digits that the base was trained on.
    """
    known, labels = _states(base, data.digit), data.digit.answers - DIGITS
    seen = data.held_out.take(slice(0, PICTURES))
    hits, count = [0, 0, 0], 0
    for wanted in range(CLASSES):
        others = seen.take((seen.answers != DIGITS + wanted).nonzero().flatten())
        to = aim(known, labels, wanted)
        generator = torch.Generator().manual_seed(wanted)
        R = ops.orthonormalize(torch.randn(to.R.shape, generator=generator)).R
        elsewhere = Aim(R, R @ known[labels == wanted].mean(0))
        for place, own in enumerate((None, to, elsewhere)):
            hits[place] += _answers(base, others, DIGITS + wanted, own)
        count += len(others.answers)
    return Steered(*(100 * found / count for found in hits))


def _states(base: nn.Module, task: Task) -> Tensor:
    """Of the token that answers, behind the block."""
    found = base(**task.inputs(), use_cache=False, output_hidden_states=True)
    hidden: Tensor = found.hidden_states[1]
    return hidden[:, -1]


def _answers(base: nn.Module, task: Task, answer: int, to: Aim | None) -> int:
    """How many pictures get this answer."""
    if to is None:
        return int((digits.logits(base, task).argmax(-1) == answer).sum())
    where = torch.zeros(task.inputs()["input_ids"].shape, dtype=torch.bool)
    where[:, -1] = True
    with steer(base, BLOCK, to, where):
        return _answers(base, task, answer, None)
