"""Sizes and tensors of the benchmark of low-rank ops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.harness import Work


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Fresh:
    """A tensor to write in place, new for the first uses, which are the ones compared.

    Later ones go on with what the last has left: a copy each time would be timed with it.
    """

    COMPARED = 4  # at least the numbers of threads

    def __init__(self, start: Tensor) -> None:
        self._start, self._used, self._last = start, 0, start

    def __call__(self) -> Tensor:
        if self._used < self.COMPARED:
            self._last, self._used = self._start.clone(), self._used + 1
        return self._last.detach()


@dataclass(frozen=True)
class Mix:
    """A linear layer with adapters of PathWeave: rows, widths, adapters and their rank."""

    name: str
    rows: int
    into: int
    onto: int
    adapters: int
    rank: int = 8

    def __str__(self) -> str:
        return f"{self.name}, N {self.rows}, {self.into} to {self.onto}, E {self.adapters}"

    @property
    def ranks(self) -> int:
        """Of all adapters together."""
        return self.adapters * self.rank

    def work(self, dtype: torch.dtype, both: bool) -> Work:
        """Products of the rows with the factors, and x, base and y once.

        Backwards the gradients of the rank intermediates and of x of all adapters, and those of
        the factors of the last one; the gradients of y and x, and x again.
        """
        n, k = self.rows, self.ranks
        down, up = 2 * n * self.into, 2 * n * self.onto
        flops = k * (down + up)
        traffic = n * (self.into + 2 * self.onto)
        if both:
            flops += k * (down + up) + self.rank * (down + up)
            traffic += n * (2 * self.into + self.onto)
        return Work(flops, traffic * dtype.itemsize)


AUDIO = Mix("keys and values of audio", 8192, 1408, 768, 2)
DEPTH = Mix("keys and values of depth", 2056, 1408, 768, 3)


@dataclass(frozen=True)
class MixTensors:
    """Arguments of `mix`; all adapters but the last are frozen, and have inner maps."""

    x: Tensor
    base: Tensor
    A: Tensor
    B: Tensor
    a: Tensor
    c: Tensor
    M: Tensor
    m: Tensor
    scale: Tensor
    gate: Tensor
    upstream: Tensor = field(repr=False)

    @property
    def leaves(self) -> list[Tensor]:
        """What has a gradient."""
        own = (self.x, self.A, self.B, self.a, self.c, self.M, self.m, self.scale, self.gate)
        return list(own)

    @property
    def old(self) -> list[bool]:
        """Which adapters are of earlier modalities."""
        return [e + 1 < len(self.A) for e in range(len(self.A))]


def make_mix(shape: Mix, stored: torch.dtype, given: torch.dtype, both: bool) -> MixTensors:
    """Tensors rounded to ``stored`` and given as ``given``; gates and scales in float32."""
    n, e, r = shape.rows, shape.adapters, shape.rank

    def rounded(*sizes: int, seed: int, size: float = 1.0) -> Tensor:
        return (size * random(*sizes, seed=seed)).to(stored).to(given)

    tensors = MixTensors(
        x=rounded(n, shape.into, seed=0),
        base=rounded(n, shape.onto, seed=1),
        A=rounded(e, r, shape.into, seed=2, size=shape.into**-0.5),
        B=rounded(e, r, shape.onto, seed=3, size=r**-0.5),
        a=rounded(e, r, seed=4),
        c=rounded(e, shape.onto, seed=5),
        M=rounded(e, r, r, seed=6, size=r**-0.5),
        m=rounded(e, r, seed=7),
        scale=1 + 0.1 * random(e, seed=8),
        gate=random(n, e, seed=9).softmax(-1),
        upstream=rounded(n, shape.onto, seed=10),
    )
    for leaf in tensors.leaves if both else ():
        leaf.requires_grad_()
    return tensors


@dataclass(frozen=True)
class Rows:
    """Hidden states, and places at both ends of each sample, which have an editor each."""

    samples: int = 2
    tokens: int = 512
    width: int = 4096
    rank: int = 4
    edge: int = 6  # rows at either end

    def __str__(self) -> str:
        return (
            f"B {self.samples}, S {self.tokens}, D {self.width}, r {self.rank}, "
            f"{2 * self.edge} rows a sample"
        )

    def work(self, dtype: torch.dtype) -> Work:
        rows = 2 * self.edge * self.samples
        return Work(6 * rows * self.width * self.rank, 2 * rows * self.width * dtype.itemsize)

    def places(self) -> tuple[Tensor, Tensor]:
        """Rows of [B S, D], and the editor of each."""
        ends = [*range(self.edge), *range(self.tokens - self.edge, self.tokens)]
        rows = [b * self.tokens + place for b in range(self.samples) for place in ends]
        return torch.tensor(rows), torch.tensor(([0] * self.edge + [1] * self.edge) * self.samples)


@dataclass(frozen=True)
class Editors:
    """W, the orthonormal R and b of editors [E, r, D]."""

    W: Tensor
    R: Tensor
    b: Tensor


def make_editors(count: int, rank: int, width: int, dtype: torch.dtype) -> Editors:
    R = orthonormal(count, rank, width).to(dtype)
    W = random(count, rank, width, seed=20, dtype=dtype) * width**-0.5
    return Editors(W, R, random(count, rank, seed=21, dtype=dtype))


def orthonormal(count: int, rank: int, width: int) -> Tensor:
    """[E, r, D] with orthonormal rows, float32."""
    X = random(count, rank, width, seed=22).double()
    return torch.linalg.qr(X.mT)[0].mT.float().contiguous()


@dataclass(frozen=True)
class Bases:
    """Factors to make orthonormal."""

    editors: int = 64
    rank: int = 8
    width: int = 4096

    def __str__(self) -> str:
        return f"{self.editors} editors of {self.width} x {self.rank}"

    @property
    def work(self) -> Work:
        numbers = self.editors * self.width * self.rank
        return Work(4 * numbers * self.rank, 2 * 4 * numbers)


@dataclass(frozen=True)
class Layers:
    """Layers of Llama's form in float32, as many as fit, and their edits.

    The edits by themselves, one layer's after the other's, each with hidden states and editors of
    its own, so that no cache holds them from the last run.
    """

    count: int = 4
    width: int = 4096
    inner: int = 11008
    heads: int = 32
    tokens: int = 128
    rank: int = 4
    edge: int = 6

    def __str__(self) -> str:
        gigabytes = 4 * self.count * self.width * (4 * self.width + 3 * self.inner) / 1e9
        return (
            f"{self.count} layers of width {self.width} ({gigabytes:.1f} GB), {self.tokens} tokens"
        )

    @property
    def rows(self) -> Rows:
        return Rows(1, self.tokens, self.width, self.rank, self.edge)

    @property
    def work(self) -> Work:
        one = self.rows.work(torch.float32)
        return Work(self.count * one.flops, self.count * one.bytes)

    def weights(self) -> Iterator[dict[str, Tensor]]:
        """Of every layer; their values do not matter to the time."""
        size = self.width**-0.5
        for _ in range(self.count):
            yield {
                **{k: torch.empty(self.width, self.width).normal_(0, size) for k in "qkvo"},
                "gate": torch.empty(self.inner, self.width).normal_(0, size),
                "up": torch.empty(self.inner, self.width).normal_(0, size),
                "down": torch.empty(self.width, self.inner).normal_(0, size),
            }


def llama_layer(h: Tensor, own: dict[str, Tensor], heads: int) -> Tensor:
    """Attention and a gated network on [B, S, D], each on normed hidden states and added."""
    F = torch.nn.functional
    x = F.rms_norm(h, h.shape[-1:])
    q, k, v = ((x @ own[name].T).unflatten(-1, (heads, -1)).transpose(1, 2) for name in "qkv")
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    h = h + mixed.transpose(1, 2).flatten(2) @ own["o"].T
    x = F.rms_norm(h, h.shape[-1:])
    inner = F.silu(x @ own["gate"].T) * (x @ own["up"].T)
    return h + inner @ own["down"].T


def copied(work: Work) -> tuple[Tensor, Tensor]:
    """A source and a target; to copy one to the other is the traffic of some work."""
    count = math.ceil(work.bytes / 8)
    return torch.ones(count), torch.zeros(count)
