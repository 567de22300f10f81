"""The least that side networks can do: counted, and as products to be timed by themselves.

With R = B N rows, and two operations a multiply-add:

    forward    K 2 R D d [gated: + K 4 R d d] [UniPT: + 4 K' N R d] + 2 R sum of the tail's matrices
    backward   the same again for the taps' matrices, twice the same for everything else

as the taps are frozen: nothing is multiplied for a gradient to them. The attention of all K' taps
is one over their K' N keys, the form with the fewest and largest products. Bytes are those of taps,
matrices and result, once in the forward and once in the backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.harness import Outputs, Run, Work
from benchmarks.side_shapes import Pool, Shape, Values, maps

Pair = tuple[Tensor, Tensor]  # to be multiplied


@dataclass(frozen=True)
class Products:
    """Of the forward, and of the gradients."""

    forward: tuple[Pair, ...] = ()
    backward: tuple[Pair, ...] = ()

    def __add__(self, other: Products) -> Products:
        return Products(self.forward + other.forward, self.backward + other.backward)


def linear(values: Values, x: Tensor, out: int, frozen: bool = False) -> Products:
    """Of x w^T, with x [R, D] and w [out, D]; with ``frozen`` x gets no gradient."""
    w, dy = values.matrix(out, x.shape[1]), values(x.shape[0], out)
    to_x = () if frozen else ((dy, w),)
    return Products(((x, w.mT),), ((dy.mT, x), *to_x))


def attention(values: Values, q: Tensor, h: Tensor) -> Products:
    """Of scores q h^T and weighted sums of h, with q [B, N, d] and h [B, K' N, d]."""
    weights = values(*q.shape[:2], h.shape[1])
    scores = values(*weights.shape)
    dz = values(*q.shape)
    to_features = ((weights.mT, dz), (scores.mT, q))
    return Products(((q, h.mT), (weights, h)), ((dz, h.mT), (scores, h), *to_features))


def products(shape: Shape, dtype: torch.dtype) -> Products:
    """All products of a side network. Operands have the sizes and layouts, not the values."""
    values = Values(dtype)
    rows, d = shape.batch * shape.tokens, shape.width
    narrow = values(rows, d)
    found = Products()
    for _ in range(shape.taps):
        found += linear(values, values(rows, shape.channels), d, frozen=True)
        if shape.gated:
            found += linear(values, narrow, d) + linear(values, narrow, d)
    if shape.method == "unipt":
        h = values(shape.batch, shape.taps, shape.tokens, d)
        found += attention(values, h[:, -1], h[:, :-1].flatten(1, 2))
    x = narrow
    for width in shape.tail[1:]:
        found += linear(values, x, width)
        x = values(rows, width)
    return found


def make_run(pairs: tuple[Pair, ...]) -> Run:
    """Multiplies the pairs. Results go to memory taken beforehand: a limit allocates nothing."""
    results = [torch.matmul(a, b) for a, b in pairs]

    def run() -> Outputs:
        for (a, b), result in zip(pairs, results, strict=True):
            torch.matmul(a, b, out=result)
        return results

    return run


def least(shape: Shape | Pool, dtype: torch.dtype, backward: bool) -> Work:
    """What a run on a shape has to do at least."""
    if isinstance(shape, Pool):
        return least_of_pool(shape, dtype)
    rows, d = shape.batch * shape.tokens, shape.width
    taps = shape.taps * shape.channels * d
    gates = shape.taps * 2 * d * d if shape.gated else 0
    tail = sum(a * b for a, b in pairwise(shape.tail))
    mixing = 2 * (shape.taps - 1) * shape.tokens * d if shape.method == "unipt" else 0
    moved = rows * (shape.taps * shape.channels + shape.out) + taps + gates + tail
    forward = Work(2.0 * rows * (taps + gates + tail + mixing), float(dtype.itemsize * moved))
    if not backward:
        return forward
    return forward + Work(2 * forward.flops - 2.0 * rows * taps, forward.bytes)


def least_of_pool(shape: Pool, dtype: torch.dtype) -> Work:
    """Two multiply-adds for every pixel's channel; maps and guide read, tokens written."""
    values = shape.batch * shape.channels * shape.side**2
    return Work(4.0 * values, float(dtype.itemsize * (values + 2 * values // shape.r**2)))


def make_read(shape: Pool, dtype: torch.dtype) -> Run:
    """Reads a pooling's input once, and does as little as possible with it.

    A sum, and always of float32: halves are summed in pairs as if they were one float32, because
    converting them takes longer than reading them.
    """
    x = maps(shape, Values(dtype)).view(torch.float32)
    return lambda: [x.sum()]
