"""Low-rank updates cut to a smaller rank, without the matrix they stand for."""

from __future__ import annotations

from pyext.ops.solve import factored_svd
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
    found = factored_svd((update.b.double() * update.scale)[None], update.a.double()[None], rank)
    return LowRank(found.a[0].to(update.a.dtype), found.b[0].to(update.b.dtype))
