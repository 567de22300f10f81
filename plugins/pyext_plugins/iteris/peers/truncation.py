"""Low-rank updates cut to a smaller rank, without the matrix they stand for."""

from __future__ import annotations

import torch

from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.peers.registry import Modules


def truncate(modules: Modules, rank: int | None) -> Modules:
    """Each update's best approximation of at most this rank; None for the updates themselves."""
    if rank is None:
        return modules
    return {
        name: update if update.rank <= rank else _cut(update, rank)
        for name, update in modules.items()
    }


def _cut(update: LowRank, rank: int) -> LowRank:
    q_b, r_b = torch.linalg.qr(update.b.double() * update.scale)
    q_a, r_a = torch.linalg.qr(update.a.double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    root = s[:rank].sqrt()
    b, a = q_b @ (u[:, :rank] * root), (root[:, None] * vh[:rank]) @ q_a.T
    return LowRank(a.to(update.a.dtype), b.to(update.b.dtype))
