"""What of a batch moves the weights, of all processes together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Batch:
    """Of each reward, [n], float64, on the CPU; NaN where there is no value.

    Args:
        squares: sum of squared distances from the mean; zeros where not asked for.
    """

    means: Tensor
    counts: Tensor
    low: Tensor
    high: Tensor
    squares: Tensor


def gather(rewards: Tensor, names: Sequence[str], reduce: bool, squares: bool) -> Batch:
    """Sums over the batch, and over all processes where there are several and ``reduce`` is set.

    Args:
        rewards: [B, n], NaN where there is no value.
        squares: whether they are wanted.

    Raises:
        ValueError: a reward is infinite, here or on another process.
    """
    reduce = reduce and dist.is_available() and dist.is_initialized()
    r = rewards.detach().cpu().double()

    def total(local: Tensor, least: bool = False) -> Tensor:
        if not reduce:
            return local
        shared = local.to(rewards.device)
        dist.all_reduce(shared, dist.ReduceOp.MIN if least else dist.ReduceOp.SUM)
        return shared.cpu()

    missing, infinite = r.isnan(), r.isinf()
    finite = r.masked_fill(missing | infinite, 0)
    sums, counts, infinities = total(
        torch.stack((finite.sum(0), (~missing).sum(0).double(), infinite.sum(0).double()))
    )
    if infinities.any():  # known to every process, so that none is left waiting
        raise ValueError(_infinity(infinite, infinities, names))
    means = sums / counts
    far = r.masked_fill(missing, torch.inf).amin(0), -r.masked_fill(missing, -torch.inf).amax(0)
    low, high = total(torch.stack(far), least=True)
    spread = torch.zeros_like(means)
    if squares:
        spread = total((r - means).square().nansum(0))
    return Batch(means, counts, low, -high, spread)


def _infinity(infinite: Tensor, infinities: Tensor, names: Sequence[str]) -> str:
    here = infinite.nonzero()
    if len(here):
        row, column = here[0].tolist()
        return f"rewards: expected no infinity, reward {names[column]!r} of row {row} is"
    column = int(infinities.nonzero()[0])
    return f"rewards: expected no infinity, reward {names[column]!r} is on another process"
