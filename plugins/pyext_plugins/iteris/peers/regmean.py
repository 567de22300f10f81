"""RegMean (Jin et al. 2023) of LoRAs, in the form in which its result is a LoRA again.

Row convention: W [o, d] maps a row x to x W^T. With the Gram G_i = X_i^T X_i / rows of the model
with adapter i alone, RegMean is W = (sum_i W_i G_i) (sum_i G_i)^-1. All W_i share the base's
weight, so the update is sum_i s_i B_i A_i G_i (sum_i G_i)^-1: B_1 ... B_N side by side, times the
solution Z of Z (sum_i G_i) = [s_i A_i G_i] stacked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyext.ops.solve import spd_solve
from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.peers.registry import Modules, Options, Problem, peer
from pyext_plugins.iteris.peers.truncation import truncate


@peer("regmean", "RegMean: least squares on the inputs that the single adapters see", "grams")
def regmean(problem: Problem) -> Modules:
    """Weights scale the Grams; equal ones are the paper's."""
    assert problem.grams is not None
    weights, grams = problem.options.weights_of(problem.tasks), problem.grams()
    found: Modules = {}
    for module in problem.modules:
        own = torch.stack(
            [
                weight * conditioned(gram[module], problem.options)
                for weight, gram in zip(weights, grams, strict=True)
            ]
        )
        found[module] = _solve([task.updates.get(module) for task in problem.tasks], own)
    return truncate(found, problem.options.rank)


def conditioned(gram: Tensor, options: Options) -> Tensor:
    """A Gram [d, d], off-diagonal entries shrunk, and a ridge relative to its norm added."""
    diagonal = torch.diag(gram.diagonal())
    ridge = options.ridge * torch.linalg.matrix_norm(gram)
    shrunk: Tensor = options.shrink * gram + (1 - options.shrink) * diagonal
    return shrunk + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def _solve(updates: list[LowRank | None], grams: Tensor) -> LowRank:
    """The merged update of one weight; ``grams`` [N, d, d] is of all adapters, also of those that
    have no update of it."""
    pairs = [(update, gram) for update, gram in zip(updates, grams, strict=True) if update]
    right = torch.cat([update.scale * update.a.double() @ gram for update, gram in pairs])
    solution = spd_solve(grams.sum(0, keepdim=True), right[None]).z[0]
    b = torch.cat([update.b for update, _ in pairs], dim=1)
    return LowRank(solution.to(b.dtype), b)
