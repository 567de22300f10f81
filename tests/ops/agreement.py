"""How compiled ops are held against the references, for the tests of several families."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyext import runtime

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Results are rounded to their type once more than the reference's: half a unit in the last place
# each time, of numbers of the size of the largest; sums of a few hundred products in float32 differ
# by their order.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2**-10,
    torch.bfloat16: 2**-7,
}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal, of a seed and the shape alone: the same numbers in every type, rounded."""
    generator = torch.Generator().manual_seed(seed * 1000 + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def assert_near(
    actual: Tensor,
    expected: Tensor,
    factor: float = 1.0,
    name: str = "",
    dtype: torch.dtype | None = None,
) -> None:
    """Equal up to `factor` times the tolerance of a type, relative to the largest.

    In 16 bits by the root of the mean square instead: rounding moves a few values to the other side
    of a ReLU, and with them single elements of a gradient by their whole size.

    ``dtype``: of what the tensors were computed from; by default the coarser of their own.
    """
    assert actual.shape == expected.shape, name
    coarse = dtype or max((actual.dtype, expected.dtype), key=TOLERANCE.__getitem__)
    got, want = actual.detach().double(), expected.detach().double()
    assert got.isfinite().all(), name
    if got.numel() == 0:
        return
    narrow = coarse.itemsize == 2
    size, worst = (
        (x.square().mean().sqrt() if narrow else x.abs().max()).item() for x in (want, got - want)
    )
    limit = factor * TOLERANCE[coarse] * max(size, 1e-30)
    assert worst <= limit, f"{name}: off by {worst}, allowed {limit}"


def gradients(
    function: Callable[[], Any], leaves: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of `function`, and the gradients of their sum with fixed random weights."""
    outputs = function()
    outputs = [outputs] if isinstance(outputs, Tensor) else [x for x in outputs if x.numel()]
    kept = [x for x in outputs if x.requires_grad]
    weights = [random(*x.shape, seed=77 + i, dtype=x.dtype) for i, x in enumerate(kept)]
    found = torch.autograd.grad(kept, leaves, weights, allow_unused=True)
    zeros = (
        torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)
    )
    return [x.detach() for x in outputs], list(zeros)


def assert_same_on_any_threads(function: Callable[[], Sequence[Tensor]]) -> None:
    """The same bits on 1, 2 and 4 threads, for every instruction set."""
    for isa in runtime.isas():
        with runtime.use_isa(isa):
            with runtime.use_threads(1):
                expected = function()
            for count in (1, 2, 4):
                with runtime.use_threads(count):
                    for got, want in zip(function(), expected, strict=True):
                        assert torch.equal(got, want), (isa, count)
