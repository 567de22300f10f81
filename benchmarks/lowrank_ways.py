"""The ways in use of what the low-rank ops do, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness import Outputs, Run
from benchmarks.lowrank_shapes import MixTensors, Rows, make_editors


def adapter(t: MixTensors, x: Tensor, e: int) -> Tensor:
    """What adapter e makes of rows, with its scale."""
    own = (t.A[e], t.B[e], t.a[e], t.c[e], t.scale[e])
    A, B, a, c, scale = (p.detach() for p in own) if t.old[e] else own
    u = x @ A.T + a
    if t.old[e]:
        u = u @ t.M[e].T + t.m[e]
    return scale.to(x.dtype) * (u @ B + c)


def dispatched(t: MixTensors) -> Tensor:
    """PathWeave's: rows are sorted by adapter, copied to each, put together, weighed and added."""
    found = t.gate.nonzero()
    order = found[:, 1].sort(stable=True)[1]
    row, chosen = found[order].T
    counts = (t.gate > 0).sum(0).tolist()
    parts = t.x[row].split(counts)
    outputs = torch.cat([adapter(t, part, e) for e, part in enumerate(parts)])
    weighed = outputs * t.gate[row].gather(1, chosen[:, None])
    zeros = torch.zeros(t.base.shape, dtype=weighed.dtype)
    return t.base + zeros.index_add(0, row, weighed).to(t.base.dtype)


def concatenated(t: MixTensors) -> Tensor:
    """All adapters as one of the sum of their ranks."""

    def parts(p: Tensor) -> list[Tensor]:
        return [own.detach() if old else own for own, old in zip(p, t.old, strict=True)]

    u = t.x @ torch.cat(parts(t.A)).T + torch.cat(parts(t.a))
    v = torch.cat(
        [
            own @ t.M[e].T + t.m[e] if t.old[e] else own
            for e, own in enumerate(u.unflatten(1, (len(t.A), -1)).unbind(1))
        ],
        1,
    )
    weights = (t.gate * torch.stack(parts(t.scale))).to(t.x.dtype)
    weighed = v * weights.repeat_interleave(t.A.shape[1], 1)
    return t.base + weighed @ torch.cat(parts(t.B)) + weights @ torch.stack(parts(t.c))


def sample_by_sample(h: Tensor, shape: Rows) -> Run:
    """MRT's: a decomposition for each editor and sample, and a new tensor put together."""
    own = make_editors(2, shape.rank, shape.width, h.dtype)
    bases = own.R.float().mT.contiguous()  # [E, D, r], of which the basis is made in every call

    def edit(x: Tensor, e: int) -> Tensor:
        Q, T = torch.linalg.qr(bases[e])
        R = (Q * T.diagonal().sign()).T.to(x.dtype)
        return x + (x @ own.W[e].T + own.b[e] - x @ R.T) @ R

    def run() -> Outputs:
        out = torch.zeros_like(h)
        for b, x in enumerate(h):
            first, between, last = x.tensor_split((shape.edge, shape.tokens - shape.edge))
            out[b] = torch.cat([edit(first, 0), between, edit(last, 1)])
        return [out]

    return run


def gathered(h: Tensor, shape: Rows) -> Run:
    """The rows of all samples gathered, edited, and scattered into a copy."""
    own = make_editors(2, shape.rank, shape.width, h.dtype)
    places = shape.places()[0].view(shape.samples, -1) % shape.tokens
    index = places[..., None].expand(-1, -1, shape.width)

    def run() -> Outputs:
        halves = h.gather(1, index).chunk(2, 1)
        edited = [
            x + (x @ own.W[e].T + own.b[e] - x @ own.R[e].T) @ own.R[e]
            for e, x in enumerate(halves)
        ]
        return [h.scatter(1, index, torch.cat(edited, 1))]

    return run


def batched_qr(X: Tensor) -> Tensor:
    """Orthonormal rows of all X [E, r, D], by LAPACK."""
    Q, T = torch.linalg.qr(X.mT)
    return (Q * T.diagonal(dim1=-2, dim2=-1).sign()[:, None]).mT
