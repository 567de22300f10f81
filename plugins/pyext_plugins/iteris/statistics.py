"""What a task's samples say about the inputs of modules: sums over tokens, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyext.errors import UserError
from pyext.ops.solve import cross_acc_, gram_acc_, sumsq_acc_, sym_fro_norm
from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.branch import Brancher
from pyext_plugins.iteris.groups import Group
from pyext_plugins.iteris.settings import Settings
from pyext_plugins.iteris.states import States
from pyext_plugins.iteris.tasks import Task

SKETCH_ABOVE = 512  # inputs wider than this get no dense cross-Gram
SIGNS = 64  # directions that its norm is estimated from instead, to 5 % or better


def products_of(settings: Settings, inputs: torch.dtype) -> torch.dtype:
    """The type that inputs are multiplied in."""
    narrow = settings.narrow and inputs != torch.float64
    return torch.float32 if narrow else torch.float64


class Statistics:
    """Sums over one task's tokens: x are the inputs that its own model gives a group of modules,
    xt those that the merged model gives them.

    Args:
        group: of modules.
        d: width of their inputs.
        updates: of the task; modules without one have the update zero.
        settings: decide what is summed.
        device: to sum on.

    Attributes:
        rows: tokens.
        gram: sum of xt^T xt, float64, the lower triangle of [d, d].
        cross: sum of x^T xt, float64, [d, d]; None where only its norm and projections are kept.
    """

    def __init__(
        self,
        group: Group,
        d: int,
        updates: Mapping[str, LowRank],
        settings: Settings,
        device: torch.device,
    ) -> None:
        self.group, self.settings = group, settings
        self.updates = {name: updates[name] for name in group.modules if name in updates}
        self.rows = 0
        self._sum64 = {"dtype": torch.float64, "device": device}
        self.gram = torch.zeros(d, d, **self._sum64)
        dense = settings.target == "full" or d <= SKETCH_ABOVE
        self.cross = torch.zeros(d, d, **self._sum64) if dense else None
        self._stack = self._make_stack(d, device)
        self._projected = torch.zeros(1, self._stack.shape[0], d, **self._sum64)
        self._inner = {
            name: torch.zeros(update.rank, update.rank, **self._sum64)
            for name, update in self.updates.items()
        }
        self._outputs = {name: torch.zeros(1, **self._sum64) for name in group.modules}
        self._gaps = {name: torch.zeros(1, **self._sum64) for name in group.modules}

    def add(self, brancher: Brancher, x: Tensor, xt: Tensor) -> None:
        """Take in the rows [rows, d] of one batch."""
        self.rows += x.shape[0]
        products = products_of(self.settings, x.dtype)
        gram_acc_(self.gram, xt, products=products)
        h = x.double() @ self._stack.T
        if self.cross is not None:
            cross_acc_(self.cross[None], x, xt, products=products)
        else:
            projected = h.to(torch.promote_types(x.dtype, torch.float32))
            cross_acc_(self._projected, projected, xt, products=products)
        start = 0
        for name, update in self.updates.items():
            own = h[:, start : start + update.rank]
            self._inner[name] += own.T @ own
            start += update.rank
        for name in self.group.modules:
            self._add_outputs(brancher, name, x, xt)

    def _add_outputs(self, brancher: Brancher, name: str, x: Tensor, xt: Tensor) -> None:
        full, update = self.settings.target == "full", self.updates.get(name)
        if not full and self.settings.weighting != "full" and update is not None:
            return
        y = brancher.output(name, x, update)
        sumsq_acc_(self._outputs[name], y)
        if full:
            sumsq_acc_(self._gaps[name], y - brancher.output(name, xt, None))

    def check(self, task: str) -> None:
        """Raise if a sum is not finite.

        Raises:
            UserError: it names task and module.
        """
        sums = (self.gram.diagonal(), *self._outputs.values())
        if not all(bool(torch.isfinite(own).all()) for own in sums):
            raise UserError(
                f"{task}: what {self.group.first} or one beside it reads or gives is not finite"
            )

    def output_energy(self, name: str) -> Tensor:
        """Squared norm of what base and update give together, without the bias."""
        return self._outputs[name][0]

    def energy(self, name: str) -> Tensor:
        """Squared norm of what the merged layer would be off by without an update."""
        if self.settings.target == "full":
            return self._gaps[name][0]
        return self.delta_energy(name)

    def delta_energy(self, name: str) -> Tensor:
        """Squared norm of what the update alone gives, s^2 tr(B^T B H^T H) with H = x A^T."""
        if name not in self.updates:
            return torch.zeros((), **self._sum64)
        update = self.updates[name]
        b = update.b.to(**self._sum64)
        return update.scale**2 * ((b.T @ b) * self._inner[name]).sum()

    def projected(self, name: str) -> Tensor:
        """A C, float64, [r, d], with C the cross-Gram and A of the module's update."""
        update = self.updates[name]
        if self.cross is not None:
            return update.a.to(**self._sum64) @ self.cross
        start = 0
        for other in self.updates:
            if other == name:
                break
            start += self.updates[other].rank
        return self._projected[0, start : start + update.rank]

    def gram_norm(self) -> Tensor:
        """Frobenius norm of the Gram."""
        return sym_fro_norm(self.gram[None])[0]

    def cross_norm(self) -> Tensor:
        """Frobenius norm of the cross-Gram; above `SKETCH_ABOVE`, an estimate.

        The same signs estimate the norm of the Gram, which is known: what they are off by in both
        cancels, the more so the less x and xt differ.
        """
        if self.cross is not None:
            return torch.linalg.matrix_norm(self.cross)
        signs = self._stack[-SIGNS:]
        by_signs = signs @ self.gram + signs @ self.gram.T - signs * self.gram.diagonal()
        share = self._projected[0, -SIGNS:].norm() / by_signs.norm()
        return self.gram_norm() * share

    def _make_stack(self, d: int, device: torch.device) -> Tensor:
        """What inputs are projected on: the A of all modules, and signs for the norm."""
        parts = [update.a.to(**self._sum64) for update in self.updates.values()]
        if self.cross is None:
            generator = torch.Generator().manual_seed(self.settings.seed)
            signs = torch.randint(0, 2, (SIGNS, d), generator=generator) * 2 - 1
            parts.append(signs.to(**self._sum64) / SIGNS**0.5)
        return torch.cat(parts) if parts else torch.zeros(0, d, **self._sum64)


def collect(
    brancher: Brancher,
    task: Task,
    merged: Mapping[str, LowRank] | None,
    groups: Sequence[Group],
    settings: Settings,
    states: States | None = None,
) -> dict[Group, Statistics]:
    """Run one task's samples through its own model and the merged one.

    Args:
        merged: updates of the merged model; None where it reads what the task's own model reads.
        groups: of modules whose inputs are wanted.
        states: that both models go on from, and where they leave off; None to run all blocks.

    Raises:
        UserError: an input is not finite; it names task, module and batch.
    """
    wanted = {group.first: group.calls for group in groups}
    found: dict[Group, Statistics] = {}
    for number, batch in enumerate(task.batches):
        batch = batch.to(brancher.device)
        own_state, their_state = states.of(task.name, number) if states else (None, None)
        own = brancher.inputs(batch, task.updates, wanted, own_state)
        theirs = own if merged is None else brancher.inputs(batch, merged, wanted, their_state)
        for group in groups:
            if group.first not in own:  # an expert that sees none of these tokens
                continue
            x, xt = own[group.first], theirs[group.first]
            for kind, rows in (("", x), (" in the merged model", xt)):
                if not torch.isfinite(rows).all():
                    raise UserError(
                        f"{task.name}: batch {number}: the inputs of {group.first}{kind} are not "
                        "finite"
                    )
            if group not in found:
                found[group] = Statistics(
                    group, x.shape[1], task.updates, settings, brancher.device
                )
            found[group].add(brancher, x, xt)
    for statistics in found.values():
        statistics.check(task.name)
    return found
