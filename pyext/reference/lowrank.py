"""Low-rank edits and mixtures of adapters in plain PyTorch; gradients come from autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyext.interface.lowrank import make_mix, make_orthonormalize, make_rows
from pyext.interface.lowrank_checks import as_rows, wide
from pyext.interface.lowrank_lora import make_lora_expand, make_lora_shrink, make_noisy_gate


def _activate(act: str, s: Tensor) -> Tensor:
    if act == "identity":
        return s
    return torch.tanh(s) if act == "tanh" else getattr(F, act)(s)


def _check_range(name: str, values: Tensor, least: int, end: int, what: str) -> None:
    wrong = ((values < least) | (values >= end)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"{name}: expected {what} from {least} to below {end}, got {int(values[wrong[0]])} at "
            f"{wrong[0]}"
        )


def _check_rows(rows: Tensor, group: Tensor | None, count: int, editors: int) -> None:
    _check_range("rows", rows, -1, count, "rows")
    if group is not None:
        _check_range("group", group, 0, editors, "editors")
    values, times = rows[rows >= 0].unique(return_counts=True)
    if (times > 1).any():
        raise ValueError(
            f"rows: two editors address the same position, row {int(values[times > 1][0])}"
        )


def lowrank_rows(
    h: Tensor,
    A: Tensor,
    B: Tensor,
    a: Tensor | None,
    rows: Tensor,
    group: Tensor | None,
    scale: Tensor | None,
    act: str,
    form: str,
) -> tuple[Tensor]:
    """h' [..., D]: see `pyext.reference.lowrank.rows`."""
    flat = h.view(-1, h.shape[-1])
    _check_rows(rows, group, len(flat), len(A))
    dtype = wide(h)
    taken = rows >= 0
    at = rows[taken].long()
    editor = torch.zeros_like(at) if group is None else group[taken].long()
    kept = flat[at].to(dtype)
    into, onto = A.to(dtype)[editor], B.to(dtype)[editor]
    s = torch.einsum("krd,kd->kr", into, kept)
    if a is not None:
        s = s + a.to(dtype)[editor]
    inside = torch.einsum("krd,kd->kr", onto, kept)
    if form == "add":
        u = _activate(act, s)
    elif form == "reft":
        u = _activate(act, s) - inside
    else:
        u = _activate(act, s - inside)
    if scale is not None:
        u = u * scale[editor, None]
    edited = kept + torch.einsum("kr,krd->kd", u, onto)
    return (flat.index_copy(0, at, edited.to(h.dtype)).view(h.shape),)


def lowrank_rows_(h: Tensor, *arguments: Any) -> None:
    """h [..., D] is edited in place."""
    h.copy_(lowrank_rows(as_rows(h), *arguments)[0].view(h.shape))


def lowrank_mix(
    x: Tensor,
    base: Tensor | None,
    A: Tensor,
    B: Tensor,
    a: Tensor | None,
    c: Tensor | None,
    M: Tensor | None,
    m: Tensor | None,
    scale: Tensor | None,
    gate: Tensor | None,
    has_inner: Sequence[bool],
    ranks: Sequence[int],
    frozen: Sequence[bool],
    act: str,
) -> tuple[Tensor]:
    """y [N, Do]: see `pyext.reference.lowrank.mix`."""
    dtype = wide(x)
    sum_ = x.new_zeros((len(x), B.shape[2]), dtype=dtype) if base is None else base.to(dtype)
    rows = x.to(dtype)
    for e, rank in enumerate(ranks):
        own = [None if t is None else t[e].to(dtype) for t in (A, B, a, c, scale)]
        if frozen[e]:
            own = [None if t is None else t.detach() for t in own]
        into, onto, shift, last, factor = own
        assert into is not None
        assert onto is not None
        v = rows @ into[:rank].T
        if shift is not None:
            v = v + shift[:rank]
        if has_inner[e] and M is not None:
            v = v @ M[e, :rank, :rank].to(dtype).T
            if m is not None:
                v = v + m[e, :rank].to(dtype)
        out = _activate(act, v) @ onto[:rank]
        if last is not None:
            out = out + last
        if factor is not None:
            out = factor * out
        sum_ = sum_ + (out if gate is None else gate[:, e, None] * out)
    return (sum_.to(x.dtype),)


def lowrank_mix_(base: Tensor, x: Tensor, *arguments: Any) -> None:
    """base [..., Do] becomes y."""
    y = lowrank_mix(x, as_rows(base), *arguments)[0]
    base.copy_(y.view(base.shape))


def lowrank_orthonormalize(X: Tensor) -> tuple[Tensor, Tensor]:
    """R and L: see `pyext.reference.lowrank.orthonormalize`."""
    # In double: rounding in float32 would make rows independent that are not.
    double = X.double()
    Q, T = torch.linalg.qr(double.mT)
    diagonal = T.diagonal(dim1=-2, dim2=-1)
    least = torch.finfo(X.dtype).eps * double.detach().flatten(1).norm(dim=1)
    for e, (row, limit) in enumerate(zip(diagonal.detach().abs(), least, strict=True)):
        if not (row > limit).all():
            raise ValueError(f"X: matrix {e} is not finite, or its rows are dependent")
    sign = torch.where(diagonal < 0, -1.0, 1.0).double()[:, :, None]
    return (sign * Q.mT).to(X.dtype), (sign * T).mT.detach().to(X.dtype)


def lowrank_noisy_gate(
    x: Tensor, Wg: Tensor, Wn: Tensor | None, eps: Tensor | None, topk: int, floor: float
) -> tuple[Tensor, Tensor]:
    """gate and logits: see `pyext.reference.lowrank.noisy_gate`."""
    dtype = wide(x)
    logits = x.to(dtype) @ Wg.to(dtype)
    if Wn is not None and eps is not None:
        logits = logits + eps * (F.softplus(x.to(dtype) @ Wn.to(dtype)) + floor)
    if topk == Wg.shape[1]:
        return logits.softmax(-1), logits
    # A stable sort, because topk leaves open which of equal logits it takes.
    kept = logits.detach().argsort(dim=-1, descending=True, stable=True)[:, :topk]
    dropped = torch.ones_like(logits, dtype=torch.bool).scatter(1, kept, False)
    return logits.masked_fill(dropped, -torch.inf).softmax(-1), logits


def _adapter_of_row(
    rows: int, count: int, idx: Tensor | None, start: Tensor | None, ids: Tensor | None
) -> Tensor:
    """[rows] int64, -1 for none."""
    if idx is not None:
        _check_range("idx", idx, -1, count, "adapters")
        return idx.long()
    assert start is not None
    assert ids is not None
    _check_range("segments[1]", ids, -1, count, "adapters")
    lengths = start.diff()
    if int(start[0]) != 0 or int(start[-1]) != rows or (lengths < 0).any():
        raise ValueError(f"segments[0]: expected to rise from 0 to {rows}, got {start.tolist()}")
    return ids.long().repeat_interleave(lengths.long())


def _factors(stack: Tensor, ranks: Sequence[int] | None) -> Sequence[Tensor]:
    """Of each adapter: of [E, r, D], or of [sum of ranks, D]."""
    return stack.unbind() if ranks is None else stack.split(list(ranks))


def lowrank_lora_shrink(
    x: Tensor,
    A: Tensor,
    idx: Tensor | None,
    start: Tensor | None,
    ids: Tensor | None,
    scale: Tensor | None,
    ranks: Sequence[int] | None,
) -> Tensor:
    """z [N, r]: see `pyext.reference.lowrank.lora_shrink`."""
    factors = _factors(A, ranks)
    adapter = _adapter_of_row(len(x), len(factors), idx, start, ids)
    dtype = wide(x)
    rank = max((len(factor) for factor in factors), default=0)
    z = x.new_zeros((len(x), rank), dtype=dtype)
    for e, factor in enumerate(factors):
        own = (adapter == e).nonzero().flatten()
        product = x[own].to(dtype) @ factor.to(dtype).T
        product = F.pad(product, (0, rank - len(factor)))
        z = z.index_add(0, own, product if scale is None else scale[e] * product)
    return z


def lowrank_lora_expand(
    base: Tensor,
    z: Tensor,
    B: Tensor,
    idx: Tensor | None,
    start: Tensor | None,
    ids: Tensor | None,
    offset: int,
    ranks: Sequence[int] | None,
) -> Tensor:
    """y: see `pyext.reference.lowrank.lora_expand`."""
    factors = _factors(B, ranks)
    adapter = _adapter_of_row(len(z), len(factors), idx, start, ids)
    product = z.new_zeros((len(z), base.shape[1]))
    for e, factor in enumerate(factors):
        own = (adapter == e).nonzero().flatten()
        right = base.shape[1] - offset - B.shape[-1]
        added = z[own, : len(factor)] @ factor.to(z.dtype)
        product = product.index_add(0, own, F.pad(added, (offset, right)))
    return (base.to(z.dtype) + product).to(base.dtype)


def lowrank_lora_expand_(base: Tensor, *arguments: Any) -> None:
    """base becomes y."""
    base.copy_(lowrank_lora_expand(base, *arguments))


rows = make_rows(lowrank_rows, lowrank_rows_)
mix = make_mix(lowrank_mix, lowrank_mix_)
orthonormalize = make_orthonormalize(lowrank_orthonormalize)
noisy_gate = make_noisy_gate(lowrank_noisy_gate)
lora_shrink = make_lora_shrink(lowrank_lora_shrink)
lora_expand = make_lora_expand(lowrank_lora_expand, lowrank_lora_expand_)

__all__ = ["lora_expand", "lora_shrink", "mix", "noisy_gate", "orthonormalize", "rows"]
