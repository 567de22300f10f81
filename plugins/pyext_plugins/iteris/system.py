"""The equations of one module, summed over tasks, and their solution.

Rows are tokens: x are the inputs of a task's own model, xt those of the merged one, W the base's
weight [o, d], s B A a task's update. With Grams G = xt^T xt, cross-Grams C = x^T xt and weights
lambda, the update D of the merged model is that of least

    sum of lambda |x T^T - xt T'^T|^2

where T = s B A and T' = D (target "delta"), or T = W + s B A and T' = W + D ("full"). The authors
add gamma to the diagonal of each G and gamma' to that of each C: not a plain ridge, but, in
directions that the samples do not excite, a pull towards a mean of the T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyext.errors import UserError
from pyext.ops.solve import factored_svd, spd_solve, truncate_dense
from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.settings import Settings
from pyext_plugins.iteris.statistics import Statistics

FLOOR = 1e-6  # of the largest entry of a diagonal, below which "diag" does not go


@dataclass(frozen=True)
class Solution:
    """Of one module.

    Args:
        update: of the merged model.
        condition: of the matrix that was solved with, as estimated.
        rung: of the ladder that the solver took: 0 for plain Cholesky.
        jitter: that it added to the diagonal.
        residual: what the merged layer is off by on the samples, by what it would be off by without
            an update; root of weighted squares.
        lost: of what the untruncated update does, the share that the cut took; 0 without a cut.
    """

    update: LowRank
    condition: float
    rung: int
    jitter: float
    residual: float
    lost: float


class System:
    """The equations of one module.

    Args:
        name: of the module, for messages.
        weight: of the base, [o, d].
        settings: how to merge.
        dtype: of the update that comes out.
    """

    def __init__(self, name: str, weight: Tensor, settings: Settings, dtype: torch.dtype) -> None:
        self.name, self.weight, self.settings, self.dtype = name, weight, settings, dtype
        (self.o, self.d), self.device = weight.shape, weight.device
        self._sum64 = {"dtype": torch.float64, "device": weight.device}
        self._gram = torch.zeros(1, self.d, self.d, **self._sum64)
        self._ridge = torch.zeros(self.d, **self._sum64)
        self._left: list[Tensor] = []
        self._right: list[Tensor] = []
        self._pull: list[Tensor] = []
        self._energy = torch.zeros((), **self._sum64)
        self._rows = 0
        full = settings.target == "full"
        self._shift = torch.zeros(self.d, self.d, **self._sum64) if full else None
        self._shift_ridge = torch.zeros(self.d, **self._sum64)

    def add(self, statistics: Statistics, update: LowRank | None, weight: float) -> None:
        """Take in a task.

        Args:
            update: of the task; None for zero.
            weight: lambda.
        """
        ridge, pull = self._regulariser(statistics)
        self._rows += statistics.rows
        self._gram[0].add_(statistics.gram, alpha=weight)
        self._ridge += weight * ridge
        self._energy += weight * statistics.energy(self.name)
        if update is not None:
            self._left.append(update.b.to(**self._sum64))
            scale = weight * update.scale
            self._right.append(scale * statistics.projected(self.name))
            self._pull.append(scale * update.a.to(**self._sum64) * pull)
        if self._shift is not None:
            assert statistics.cross is not None
            lower = statistics.gram.tril()
            gram = lower + lower.tril(-1).T
            self._shift += weight * (statistics.cross - gram)
            self._shift_ridge += weight * (pull - ridge)

    def solve(self) -> Solution:
        """The update of least error. To be called once: the sums are overwritten.

        Raises:
            UserError: the sums are not finite, or too few for a solution without a regulariser.
        """
        if self.settings.alpha == 0 and self._rows < self.d:
            raise UserError(
                f"--alpha: 0 needs at least {self.d} tokens at {self.name}, got {self._rows}; "
                "choose one above 0, such as 1e-4"
            )
        self._gram.diagonal(dim1=-2, dim2=-1).add_(self._ridge)
        if self._shift is not None:
            return self._solve_full()
        return self._solve_delta()

    def _regulariser(self, statistics: Statistics) -> tuple[Tensor, Tensor]:
        """What alpha adds to the diagonals of Gram and cross-Gram, [d] each."""
        alpha, gram = self.settings.alpha, statistics.gram.diagonal()
        norm = statistics.gram_norm()
        if self.settings.reg == "fro":
            ridge = alpha * norm.expand(self.d)
        elif self.settings.reg == "trace":
            ridge = alpha * gram.mean().expand(self.d)
        else:
            ridge = alpha * gram.clamp(min=FLOOR * float(gram.max()))
        return ridge, ridge * (statistics.cross_norm() / norm)

    def _solve_delta(self) -> Solution:
        left = torch.cat(self._left, 1)
        right = torch.cat(self._right) + torch.cat(self._pull)
        most = min(self.settings.rank or left.shape[1], left.shape[1], self.o, self.d)
        cut = most < left.shape[1] or self.settings.energy > 0
        z, s, *told = self._spd_solve(right, half=True)
        b, a, lost = left, z, 0.0
        if cut:
            b, a, _, kept, err = factored_svd(
                left[None], s[None], most, chol=self._gram, energy=self.settings.energy
            )
            b, a, lost = b[0, :, : int(kept)], a[0, : int(kept)], float(err)
        return self._solution(b, a, lost, told, self._explained(b, a))

    def _explained(self, b: Tensor, a: Tensor) -> Tensor:
        """<sum of lambda T C, D> for D = b a, regulariser left out."""
        left, right = torch.cat(self._left, 1), torch.cat(self._right)
        return ((b.T @ left) * (a @ right.T)).sum()

    def _solve_full(self) -> Solution:
        assert self._shift is not None
        weight = self.weight.to(torch.float64)
        plain = weight @ self._shift
        right = weight * self._shift_ridge
        for left, own, pull in zip(self._left, self._right, self._pull, strict=True):
            plain += left @ own
            right += left @ pull
        w, s, *told = self._spd_solve(right + plain, half=bool(self.settings.energy))
        b, a, lost = self._truncated(w, s)
        return self._solution(b, a, lost, told, (plain * (b @ a)).sum())

    def _truncated(self, w: Tensor, s: Tensor) -> tuple[Tensor, Tensor, float]:
        """Factors of a dense update, cut to the rank that is wanted, and what is lost."""
        most = min(self.settings.rank or self.d, self.o, self.d)
        if most == min(self.o, self.d) and not self.settings.energy:
            eye = torch.eye(most, **self._sum64)
            return (eye, w, 0.0) if self.o <= self.d else (w, eye, 0.0)
        b, a, sv, err = truncate_dense(w, most, chol=self._gram[0])
        if not self.settings.energy:
            return b, a, float(err)
        shares = sv[:most].square().cumsum(0) / s.square().sum()
        kept = min(int((shares < self.settings.energy).sum()) + 1, most)
        return b[:, :kept], a[:kept], max(0.0, 1 - float(shares[kept - 1])) ** 0.5

    def _spd_solve(self, right: Tensor, half: bool) -> tuple[Tensor, Tensor, float, int, float]:
        """z, s, condition, rung and jitter; the Gram becomes its Cholesky factor."""
        try:
            z, s, info, jitter, rcond = spd_solve(
                self._gram, right[None], half=half, inplace_factor=True
            )
        except ValueError as error:
            raise UserError(f"{self.name}: its equations cannot be solved: {error}") from error
        condition = 1 / float(rcond) if float(rcond) > 0 else math.inf
        return z[0], s[0] if half else s, condition, int(info), float(jitter)

    def _solution(
        self,
        b: Tensor,
        a: Tensor,
        lost: float,
        told: list[float],
        explained: Tensor,
    ) -> Solution:
        """Round the factors to what is kept of them, and tell how well they do."""
        condition, rung, jitter = told
        half = a @ self._gram[0]
        squares = half @ half.T - (a * self._ridge) @ a.T
        error = self._energy - 2 * explained + ((b.T @ b) * squares).sum()
        residual = 0.0
        if self._energy > 0:
            residual = float((error / self._energy).clamp(min=0).sqrt())
        update = LowRank(a.to(self.dtype), b.to(self.dtype))
        return Solution(update, condition, int(rung), jitter, residual, lost)
