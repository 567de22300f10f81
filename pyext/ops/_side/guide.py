"""The guide: features of the last tap, by which the others are mixed."""

from __future__ import annotations

import torch
from torch import Tensor

from pyext.ops._side.wide import wide

_ops = torch.ops.pyext


def last(affine: Tensor | None) -> Tensor | None:
    return None if affine is None else affine[-1]


def rows(affine: Tensor | None, taps: int) -> Tensor | None:
    return None if affine is None else affine[:taps]


def apply(h: Tensor, a: Tensor | None, c: Tensor | None) -> Tensor:
    """a o h + c of one tap [..., d], in the type of h."""
    features = h.to(wide(h))
    if a is not None:
        features = features * a.to(features.dtype)
    if c is not None:
        features = features + c.to(features.dtype)
    return features.to(h.dtype).contiguous()


def apply_backward(
    g: Tensor, g_pool: Tensor | None, h: Tensor, pool: Tensor, a: Tensor | None, c: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients to h, pool, a and c from those to the features of h and, if any, of pool."""
    g_h = g if a is None else apply(g, a, None)
    g_means = None if g_pool is None else apply(g_pool, a, None)
    if a is None and c is None:
        return g_h, g_means, None, None
    g_a, g_c = _ops.side_affine_backward(g, h)
    if g_pool is not None:
        of_a, of_c = _ops.side_affine_backward(g_pool.unsqueeze(1), pool.unsqueeze(1))
        g_a, g_c = g_a + of_a, g_c + of_c
    return (
        *(g_h, g_means),
        None if a is None else g_a.to(a.dtype),
        None if c is None else g_c.to(c.dtype),
    )


def join_rows(shallow: Tensor | None, guide: Tensor | None) -> Tensor | None:
    """Gradients of the other taps' rows and of the guide's, if it has one."""
    if shallow is None or guide is None:
        return shallow
    return torch.cat([shallow, guide.unsqueeze(0)])
