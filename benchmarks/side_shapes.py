"""Side networks at published sizes, with random taps and parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pyext.interface.side_blocks import Down, Gate, GatedDown, Proj, Up


@dataclass(frozen=True)
class Shape:
    """Sizes of a side network: K taps [B, N, D] go to width d, the result to width E."""

    name: str
    method: Literal["unipt", "sherl"]
    batch: int
    tokens: int
    taps: int
    channels: int  # D
    width: int  # d
    out: int  # E
    inner: tuple[int, ...] | None = None  # widths between the maps of Proj; None: no Proj
    text: int = 0  # how many tokens, from the first, may be padding
    up_act: str = "relu"
    gated: bool = False  # down-projections

    @property
    def tail(self) -> list[int]:
        """Widths from the mixed taps to the result, a matrix between one and the next."""
        proj = [] if self.inner is None else [*self.inner, self.width]
        return [self.width, *proj, self.out]

    def __str__(self) -> str:
        sizes = (self.batch, self.taps, self.tokens, self.channels, self.width, self.out)
        named = (f"{name} {size}" for name, size in zip("BKNDdE", sizes, strict=True))
        return f"{self.name} ({', '.join(named)})"


VSE_TEXT = Shape("UniPT, VSE text", "unipt", 32, 32, 13, 768, 512, 1024, (), 32)
SHAPES = (
    VSE_TEXT,
    Shape("UniPT, CLIP-ViL", "unipt", 4, 260, 13, 768, 384, 768, (768,), 20, "none"),
    Shape("UniPT, ViT-B/16", "unipt", 4, 197, 13, 768, 384, 768, ()),
    Shape("SHERL, T5-base encoder", "sherl", 8, 128, 10, 768, 192, 768, gated=True),
    Shape("SHERL, ViT-B/16", "sherl", 4, 197, 12, 768, 384, 768),
)  # fmt: skip


@dataclass(frozen=True)
class Pool:
    """Sizes of guided pooling: maps [B, C, S, S] to tokens, one of r x r pixels."""

    name: str
    batch: int
    channels: int
    side: int
    r: int

    def __str__(self) -> str:
        return (
            f"{self.name} (B {self.batch}, {self.channels} x {self.side} x {self.side} by {self.r})"
        )


# The first three stages of ResNeXt on 512 x 512, as many pictures as make 64 MiB of float32:
# as in a batch of the published size, a map is not in a cache when it is read.
POOLS = (
    Pool("guided pooling, stage 1", 4, 256, 128, 8),
    Pool("guided pooling, stage 2", 8, 512, 64, 4),
    Pool("guided pooling, stage 3", 16, 1024, 32, 2),
)


@dataclass(frozen=True)
class Task:
    """A function's arguments, and what to differentiate by.

    Args:
        function: of `pyext.ops.side`.
        arguments, options: of the function.
        leaves: the tensors in them that get a gradient: parameters, as the taps are frozen.
        upstream: gradient of the function's first output.
    """

    function: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    leaves: tuple[Tensor, ...] = ()
    upstream: Tensor | None = None


class Values:
    """Random values, the same for every dtype up to its rounding.

    Args:
        stored: the dtype that the values are rounded to.
        computed: the dtype they are then given in.
    """

    def __init__(self, stored: torch.dtype, computed: torch.dtype | None = None) -> None:
        self.stored, self.computed = stored, computed or stored
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *size: int, scale: float = 1.0, around: float = 0.0) -> Tensor:
        values = torch.randn(size, generator=self.generator) * scale + around
        return values.to(self.stored).to(self.computed)

    def matrix(self, rows: int, columns: int) -> Tensor:
        return self(rows, columns, scale=columns**-0.5)

    def lengths(self, count: int, longest: int) -> Tensor:
        """From a quarter of the longest up."""
        return torch.randint(longest // 4, longest + 1, (count,), generator=self.generator)


def make_task(shape: Shape | Pool, values: Values) -> Task:
    """The side network, or the pooling, of given sizes."""
    if isinstance(shape, Pool):
        return Task("guided_pool", (maps(shape, values), guide(shape, values)))
    return make_block(shape, values)


def maps(shape: Pool, values: Values) -> Tensor:
    return values(shape.batch, shape.channels, shape.side, shape.side)


def guide(shape: Pool, values: Values) -> Tensor:
    """After a ReLU."""
    grid = shape.side // shape.r
    return values(shape.batch, shape.channels, grid, grid, scale=shape.channels**-0.5).relu()


def make_block(shape: Shape, values: Values) -> Task:
    """A side network on frozen taps, with the parameters as leaves."""
    x = [values(shape.batch, shape.tokens, shape.channels) for _ in range(shape.taps)]
    parts: tuple[Any, ...]
    options: dict[str, Any]
    if shape.method == "unipt":
        parts = (_down(shape, values), _gate(shape, values), _proj(shape, values))
        options = {"mask": padding(shape, values), "eps": 1e-6}
    else:
        parts = (_down(shape, values), _gate(shape, values))
        options = {"residual": x[-1], "res_scale": values(1, scale=0.1, around=0.5)}
    parts = (*parts, _up(shape, values))
    leaves = [tensor for part in parts if part for tensor in tensors(part)]
    if shape.method == "unipt":
        # The gate's bias shifts the argument of a softmax: its gradient is zero.
        leaves = [tensor for tensor in leaves if tensor is not parts[1].b]
    else:
        leaves.append(options["res_scale"])
    return Task(
        f"{shape.method}_block",
        (x, *parts),
        options,
        tuple(tensor.requires_grad_() for tensor in leaves),
        values(shape.batch, shape.tokens, shape.out),
    )


def tensors(part: Iterable[Any]) -> list[Tensor]:
    """Tensors among a part's parameters, and in its lists of parameters."""
    found: list[Tensor] = []
    for value in part:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list):
            found += value
    return found


def padding(shape: Shape, values: Values) -> Tensor | None:
    """[B, N], True where a token counts: text of any length, then all other tokens."""
    if not shape.text:
        return None
    lengths = values.lengths(shape.batch, shape.text)
    index = torch.arange(shape.tokens)
    return (index < lengths[:, None]) | (index >= shape.text)


def _down(shape: Shape, values: Values) -> Down | GatedDown:
    def each(make: Callable[[], Tensor]) -> list[Tensor]:
        return [make() for _ in range(shape.taps)]

    def matrices(columns: int) -> list[Tensor]:
        return each(lambda: values.matrix(shape.width, columns))

    def biases() -> list[Tensor]:
        return each(lambda: values(shape.width, scale=0.1))

    if shape.gated:
        inner = (matrices(shape.width), biases(), matrices(shape.width), biases())
        return GatedDown(matrices(shape.channels), biases(), *inner)
    norms = values(shape.taps, shape.width, scale=0.1, around=1.0)
    shifts = values(shape.taps, shape.width, scale=0.1)
    return Down(matrices(shape.channels), biases(), norms, shifts, norm="layer")


def _gate(shape: Shape, values: Values) -> Gate:
    # SHERL divides by the sum of what passes a ReLU: the bias keeps that away from zero.
    return Gate(values(shape.width, scale=shape.width**-0.5), values(1, scale=0.1, around=1.0))


def _proj(shape: Shape, values: Values) -> Proj | None:
    if shape.inner is None:
        return None
    widths = (shape.width, *shape.inner, shape.width)
    w = [values.matrix(b, a) for a, b in zip(widths[:-1], widths[1:], strict=True)]
    b = [values(len(matrix), scale=0.1) for matrix in w]
    norm = (values(shape.width, scale=0.1, around=1.0), values(shape.width, scale=0.1))
    return Proj(w, b, *norm)


def _up(shape: Shape, values: Values) -> Up:
    w, b = values.matrix(shape.out, shape.width), values(shape.out, scale=0.1)
    return Up(w, b, pre_act=shape.up_act)
