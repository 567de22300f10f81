"""Taps projected through a gate: agreement, gradients, threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyext import runtime
from pyext.ops import side
from pyext.reference import side as reference
from tests.ops.agreement import (
    DTYPES,
    assert_near,
    assert_same_on_any_threads,
    gradients,
    random,
)

ops = torch.ops.pyext

FACTOR = 16  # gradients go through three products and a gate


def inputs(
    batch: int, tokens: int, widths: tuple[int, ...], d: int, dtype: torch.dtype
) -> list[list[Tensor]]:
    """x, w1, b1, w2, b2, w3, b3, requiring a gradient."""

    def matrices(seed: int, *columns: int) -> list[Tensor]:
        shapes = enumerate(columns)
        return [(random(d, n, seed=seed + k) / n**0.5).to(dtype) for k, n in shapes]

    def biases(seed: int) -> list[Tensor]:
        return [random(d, seed=seed + k, dtype=dtype) for k in range(len(widths))]

    square = [d] * len(widths)
    x = [random(batch, tokens, D, seed=k, dtype=dtype) for k, D in enumerate(widths)]
    lists = [x, matrices(10, *widths), biases(20), matrices(30, *square), biases(40),
             matrices(50, *square), biases(60)]  # fmt: skip
    return [[t.requires_grad_() for t in tensors] for tensors in lists]


def flat(lists: list[list[Tensor]]) -> list[Tensor]:
    return [tensor for tensors in lists for tensor in tensors]


def compare(lists: list[list[Tensor]], layout: str = "token") -> None:
    leaves = flat(lists)
    got, g_got = gradients(lambda: side.project_gated(*lists, layout=layout), leaves)
    want, g_want = gradients(lambda: reference.project_gated(*lists, layout=layout), leaves)
    assert got[0].stride() == want[0].stride()
    assert_near(got[0], want[0], 4)
    for i, (a, b) in enumerate(zip(g_got, g_want, strict=True)):
        assert_near(a, b, FACTOR, f"gradient {i}")


@pytest.mark.numerics_small
@pytest.mark.parametrize("layout", ["layer", "token"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_small(layout, dtype):
    compare(inputs(2, 5, (7, 20), 19, dtype), layout)


@pytest.mark.parametrize("layout", ["layer", "token"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows(layout, dtype):
    compare(inputs(3, 90, (24, 40, 24), 48, dtype), layout)


@pytest.mark.parametrize("isa", runtime.isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(isa, dtype):
    with runtime.use_isa(isa):
        compare(inputs(2, 9, (10, 16), 35, dtype))


@pytest.mark.parametrize("layout", ["layer", "token"])
def test_gradcheck(layout):
    lists = inputs(2, 3, (4, 5), 6, torch.float64)

    def function(*leaves: Tensor) -> Tensor:
        pairs = [leaves[2 * i : 2 * i + 2] for i in range(7)]
        return side.project_gated(*pairs, layout=layout)

    assert torch.autograd.gradcheck(function, flat(lists))


def test_of_nothing():
    lists = inputs(0, 3, (4, 4), 5, torch.float32)
    f = side.project_gated(*lists)
    assert f.shape == (0, 2, 3, 5)
    for g in torch.autograd.grad(f.sum(), flat(lists[1:])):
        assert torch.equal(g, torch.zeros_like(g))


# More rows than a block has; also a single block, where threads have no task.
@pytest.mark.parametrize("batch, tokens", [(5, 70), (1, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_threads(batch, tokens, dtype):
    lists = inputs(batch, tokens, (72, 40), 300, dtype)

    def run():
        outputs, grads = gradients(lambda: side.project_gated(*lists), flat(lists))
        return [*outputs, *grads]

    assert_same_on_any_threads(run)


def test_frozen_taps_get_no_gradient():
    lists = inputs(2, 5, (4, 6), 6, torch.float32)
    lists[0][0] = lists[0][0].detach()
    side.project_gated(*lists).square().sum().backward()
    assert lists[0][0].grad is None and all(t.grad is not None for t in flat(lists)[1:])


@pytest.mark.parametrize("layout", ["layer", "token"])
def test_opcheck(layout):
    lists = inputs(2, 3, (4, 5), 6, torch.float32)
    torch.library.opcheck(ops.side_project_gated.default, (*lists, layout))


def test_second_derivatives_are_refused():
    lists = inputs(1, 2, (3,), 4, torch.float32)
    f = side.project_gated(*lists)
    (g,) = torch.autograd.grad(f.square().sum(), lists[1], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        torch.autograd.grad(g.sum(), lists[1])


def test_op_wants_a_tensor_a_tap():
    lists = inputs(2, 3, (4, 5), 6, torch.float32)
    lists[4] = lists[4][:1]
    with pytest.raises(ValueError, match="^b2: expected 2 tensors, one a tap, got 1$"):
        ops.side_project_gated(*lists, "token")
