"""`solve_dual_solve`: a chain of products and `solve_spd_solve`, for any device."""

from __future__ import annotations

import torch
from torch import Tensor

_ops = torch.ops.pyext
_library = torch.library.Library("pyext", "FRAGMENT")
_library.define(
    "solve_dual_solve(Tensor y, Tensor q, Tensor a, Tensor rho, Tensor gamma) "
    "-> (Tensor z, Tensor info)"
)


def _dual_solve(
    y: Tensor, q: Tensor, a: Tensor, rho: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    if gamma.is_cpu and not gamma >= 0:
        raise ValueError(f"gamma: expected no negative value, got {gamma.item():g}")
    wide, a_wide = y.double(), a.double()
    kernel = torch.zeros(1, y.shape[0], y.shape[0], dtype=torch.float64, device=y.device)
    # The rows of y are the columns of what is summed.
    _ops.solve_gram_acc_(kernel, wide.T.contiguous())
    kernel.diagonal(dim1=-2, dim2=-1).add_(gamma)
    rhs = torch.cat((q.double().T, a_wide @ wide.T)).unsqueeze(0)
    solved, _, info, _, _ = _ops.solve_spd_solve_(kernel, rhs)
    first, second = solved[0].chunk(2)
    z = first @ wide + rho.double().unsqueeze(1) * (a_wide - second @ wide)
    return z.to(y.dtype), info[0].clone()


_library.impl("solve_dual_solve", _dual_solve, "CompositeExplicitAutograd")


@torch.library.register_fake("pyext::solve_dual_solve")
def _(y, q, a, rho, gamma):  # type: ignore[no-untyped-def]
    return a.new_empty(a.shape), y.new_empty((), dtype=torch.int32)
