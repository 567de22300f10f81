"""The parameters of editors, and one edit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyext.interface.lowrank_checks import wide
from pyext.ops import lowrank as ops
from pyext_plugins.reft.config import KINDS, EditorConfig


class Factors(NamedTuple):
    """What `pyext.ops.lowrank.rows` takes of E editors: A, B [E, r, D] and a [E, r]."""

    A: Tensor
    B: Tensor
    a: Tensor

    def split(self, size: int) -> list[Factors]:
        """Of every ``size`` editors; one backward pass joins what all of them are given."""
        parts = zip(*(tensor.split(size) for tensor in self), strict=True)
        return [Factors(*part) for part in parts]


class Stack(nn.Module):
    """E editors of one shape.

    Parameters, all float32: X [E, r, D], which `pyext.ops.lowrank.orthonormalize` makes R (where
    the kind is not orthonormal, X is R), W [E, r, D] where the kind learns one, b [E, r].

    Args:
        count: E.
        rank: r.
        width: D.
        config: what an editor computes.
        device: of the parameters. An identity start is exact on it; after moving it to another
            device, whose arithmetic may round otherwise, call `reset`.

    Raises:
        ValueError: r is more than D.
    """

    def __init__(
        self, count: int, rank: int, width: int, config: EditorConfig, device: torch.device
    ) -> None:
        super().__init__()
        if rank > width:
            raise ValueError(f"rank: expected at most the width {width}, got {rank}")
        self.config, self.kind = config, KINDS[config.kind]
        self.fixed = False  # X is R already, and stays what it is
        shape = count, rank, width
        self.X = nn.Parameter(torch.empty(shape, device=device))
        self.W = nn.Parameter(torch.empty(shape, device=device)) if self.kind.learned else None
        self.b = nn.Parameter(torch.empty(shape[:2], device=device))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Start anew, from torch's generator."""
        self.fixed = False
        self.requires_grad_(True)
        self.X.copy_(ops.orthonormalize(torch.randn_like(self.X)).R)
        if self.config.start == "random":
            bound = 1 / math.sqrt(self.X.shape[-1])
            for tensor in (self.W, self.b):
                if tensor is not None:
                    tensor.uniform_(-bound, bound)
            return
        self.b.zero_()
        if self.W is not None:
            # What a forward pass computes, so that the difference is 0 and not merely small.
            self.W.copy_(bases([self])[0]) if self.kind.subtracts else self.W.zero_()

    @torch.no_grad()
    def load(self, R: Tensor, W: Tensor | None, b: Tensor, fixed: bool) -> None:
        """Take over R, W and b.

        Args:
            fixed: R is used to the bit and nothing trains; else it is where training starts.
        """
        for own, given in ((self.X, R), (self.W, W), (self.b, b)):
            if own is not None and given is not None:
                own.copy_(given)
                own.requires_grad_(not fixed)
        self.fixed = fixed

    def factors(self, R: Tensor) -> Factors:
        """Of a forward pass with these R [E, r, D]."""
        if self.W is None:
            return Factors(-R if self.kind.subtracts else torch.zeros_like(R), R, self.b)
        between = self.kind.subtracts and self.config.op_form == "add"
        return Factors(self.W - R if between else self.W, R, self.b)

    def edit(
        self, hidden: Tensor, factors: Factors, rows: Tensor, group: Tensor | None, inplace: bool
    ) -> Tensor:
        """Edit rows of hidden states.

        Args:
            hidden: [..., D] contiguous.
            factors: of the editors that ``group`` numbers.
            rows: [K] of hidden as [N, D]; -1 for none.
            group: [K], or None for one editor.
            inplace: write into hidden.

        Returns:
            The edited hidden states; hidden itself if ``inplace``.
        """
        # A model may be spread over devices.
        own = Factors(*(tensor.to(hidden.device, wide(hidden)) for tensor in factors))
        rows = rows.to(hidden.device)
        group = None if group is None else group.to(hidden.device)
        if self.training and self.config.dropout:
            return self._edit_with_dropout(hidden, own, rows, group)
        return ops.rows(
            hidden,
            *own,
            rows=rows,
            group=group,
            act=self.config.act,
            form=self.config.op_form,
            inplace=inplace,
        )

    def _edit_with_dropout(
        self, hidden: Tensor, factors: Factors, rows: Tensor, group: Tensor | None
    ) -> Tensor:
        """Only what is added is dropped, so the edit is computed apart."""
        flat = hidden.view(-1, hidden.shape[-1])
        at, exists = rows.clamp(min=0), (rows >= 0).unsqueeze(-1)
        kept = flat[at].to(wide(hidden))
        edited = ops.rows(
            kept,
            *factors,
            rows=torch.arange(len(rows), device=rows.device),
            group=group,
            act=self.config.act,
            form=self.config.op_form,
        )
        added = F.dropout(edited - kept, self.config.dropout) * exists
        return flat.index_add(0, at, added.to(hidden.dtype)).view(hidden.shape)


def bases(stacks: Iterable[Stack]) -> list[Tensor]:
    """R [E, r, D] of each stack; all that are of one shape [r, D] in one call of the op.

    Raises:
        TypeError: the factor is not in float32.
        ValueError: it is not finite, or its rows are dependent.
    """
    stacks = list(stacks)
    found: list[Tensor] = [stack.X for stack in stacks]
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, stack in enumerate(stacks):
        if stack.kind.orthonormal and not stack.fixed:
            X = stack.X
            alike.setdefault((*X.shape[1:], X.dtype, X.device), []).append(place)
    for places in alike.values():
        own: list[Tensor] = [stacks[place].X for place in places]
        R = ops.orthonormalize(own[0] if len(own) == 1 else torch.cat(own)).R
        parts = R.split([len(X) for X in own])
        for place, part in zip(places, parts, strict=True):
            found[place] = part
    return found
