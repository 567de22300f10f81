"""The noisy top-k gate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyext import runtime
from pyext.ops import lowrank
from pyext.reference import lowrank as reference
from tests.ops.agreement import (
    DTYPES,
    assert_near,
    assert_same_on_any_threads,
    gradients,
    random,
)

ops = torch.ops.pyext

FACTOR = 8  # gradients go through a softmax and two products


def inputs(lead=(3, 5), width=33, experts=4, dtype=torch.float64, noise=True, weights=None):
    """x, Wg, Wn, which require a gradient, and eps."""
    weights = weights or dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = random(*lead, width, dtype=dtype)
    Wg, Wn = ((random(width, experts, seed=s) / width**0.5).to(weights) for s in (1, 2))
    eps = random(*lead, experts, seed=3, dtype=wide)
    leaves = [x, Wg, Wn] if noise else [x, Wg]
    return [t.requires_grad_() for t in leaves], eps if noise else None


def call(implementation, leaves, eps, **options):
    noise = () if eps is None else (leaves[2], eps)
    return implementation.noisy_gate(*leaves[:2], *noise, **options)


def compare(leaves, eps, **options):
    got, g_got = gradients(lambda: call(lowrank, leaves, eps, **options), leaves)
    want, g_want = gradients(lambda: call(reference, leaves, eps, **options), leaves)
    for name, a, b in zip(("gate", "logits"), got, want, strict=True):
        assert_near(a, b, 4, name)
    for name, a, b in zip(("x", "Wg", "Wn"), g_got, g_want, strict=False):
        assert a.dtype == b.dtype
        assert_near(a, b, FACTOR, f"gradient to {name}", dtype=leaves[0].dtype)


@pytest.mark.numerics_small
@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("topk", [None, 1, 3])
def test_small(noise, topk):
    for dtype in DTYPES[:3]:
        compare(*inputs(dtype=dtype, noise=noise), topk=topk, floor=0.1)


@pytest.mark.numerics_small
@pytest.mark.parametrize("width, experts", [(1, 1), (20, 9), (300, 40)])
def test_small_shapes(width, experts):
    compare(*inputs((4,), width, experts, torch.float32), topk=max(1, experts // 2))


# More rows than a span has, more columns than registers have, and the most experts.
@pytest.mark.parametrize("rows, width, experts", [(2500, 40, 3), (70, 1030, 9), (33, 64, 128)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_agreement(rows, width, experts, dtype):
    for noise in (True, False):
        compare(*inputs((rows,), width, experts, dtype, noise), topk=max(2, experts // 3))


@pytest.mark.parametrize("isa", runtime.isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(isa, dtype):
    with runtime.use_isa(isa):
        compare(*inputs((70,), 50, 5, dtype), topk=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_columns_in_float32_beside_half_precision(dtype):
    compare(*inputs(dtype=dtype, weights=torch.float32))


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("topk", [None, 2])
def test_gradcheck(noise, topk):
    leaves, eps = inputs((4,), 5, 3, noise=noise)
    assert torch.autograd.gradcheck(lambda *t: call(lowrank, t, eps, topk=topk), leaves)


@pytest.mark.numerics_small
@pytest.mark.parametrize("implementation", [lowrank, reference])
def test_of_equal_logits_the_first_are_kept(implementation):
    gate, logits = implementation.noisy_gate(torch.ones(2, 3), torch.zeros(3, 5), topk=2)
    assert torch.equal(gate, torch.tensor([[0.5, 0.5, 0, 0, 0]] * 2))
    assert torch.equal(logits, torch.zeros(2, 5))
    columns = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0]])
    gate, _ = implementation.noisy_gate(torch.ones(1, 1), columns, topk=3)
    assert (gate > 0).tolist() == [[True, True, False, True, False]]


def test_a_gate_sums_to_one_and_has_topk_values():
    leaves, eps = inputs((50,), experts=7, dtype=torch.float32)
    for topk in range(1, 8):
        gate, logits = call(lowrank, leaves, eps, topk=topk)
        assert (gate > 0).sum(-1).eq(topk).all()
        # Each of at most seven values is rounded once, and so is their sum.
        assert (gate.sum(-1) - 1).abs().max() <= 8 * 2.0**-24
        least = torch.where(gate > 0, logits, math.inf).amin(-1)
        assert (torch.where(gate > 0, -math.inf, logits).amax(-1) < least).all()


@pytest.mark.numerics_small
@pytest.mark.parametrize("topk", [3, 2])
def test_logits_that_are_no_numbers(topk):
    x = torch.tensor([[1.0], [math.nan], [math.inf], [-math.inf], [1e30]])
    columns = torch.tensor([[1.0, 2.0, -1.0]])
    got = lowrank.noisy_gate(x, columns, topk=topk)
    want = reference.noisy_gate(x, columns, topk=topk)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
    assert got.gate[4].tolist() == [0, 1, 0]  # what underflows is a zero, and no row is lost


@pytest.mark.parametrize("wanted", range(3))
def test_a_gradient_that_is_not_wanted_is_not_made(wanted):
    leaves, eps = inputs((15,), dtype=torch.float32)
    x, Wg, Wn = (t.detach() for t in leaves)
    gate, logits, deviations = ops.lowrank_noisy_gate(x, Wg, Wn, eps, 4, 0.01)
    arguments = (gate.cos(), logits.cos(), x, Wg, Wn, eps, gate, deviations)
    every = ops.lowrank_noisy_gate_backward(*arguments, [True] * 3)
    one = ops.lowrank_noisy_gate_backward(*arguments, [i == wanted for i in range(3)])
    for i, (got, want) in enumerate(zip(one, every, strict=True)):
        assert torch.equal(got, want) if i == wanted else got.shape == (0,)


@pytest.mark.parametrize("implementation", [lowrank, reference])
def test_of_nothing(implementation):
    leaves, eps = inputs((0, 3), dtype=torch.float32)
    outputs, grads = gradients(lambda: torch.stack(call(implementation, leaves, eps)), leaves)
    assert outputs[0].shape == (2, 0, 3, 4)
    for g, leaf in zip(grads, leaves, strict=True):
        assert torch.equal(g, torch.zeros_like(leaf))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [9, 1000])
def test_threads(rows, dtype):
    leaves, eps = inputs((rows,), 300, 5, dtype)

    def run():
        outputs, grads = gradients(lambda: call(lowrank, leaves, eps, topk=3), leaves)
        return [*outputs, *grads]

    assert_same_on_any_threads(run)


def test_strided():
    leaves, eps = inputs(dtype=torch.float32)
    strided = [t.detach().mT.contiguous().mT for t in leaves]
    for a, b in zip(call(lowrank, strided, eps), call(lowrank, leaves, eps), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype, noise):
    leaves, eps = inputs((6,), dtype=dtype, noise=noise)
    x, Wg, Wn = leaves if noise else (*leaves, None)
    torch.library.opcheck(ops.lowrank_noisy_gate.default, (x, Wg, Wn, eps, 2, 0.01))


def test_compiles_whole():
    leaves, eps = inputs(dtype=torch.float32)

    def model(*leaves: Tensor) -> Tensor:
        gate, logits = call(lowrank, leaves, eps, topk=2)
        return gate * logits

    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    got, want = (gradients(lambda f=f: f(*leaves), leaves) for f in (whole, model))
    for a, b in zip([*got[0], *got[1]], [*want[0], *want[1]], strict=True):
        assert_near(a, b)


def test_second_derivatives_are_refused():
    leaves, eps = inputs()
    gate = call(lowrank, leaves, eps).gate
    (g,) = torch.autograd.grad(gate.square().sum(), leaves[1], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        torch.autograd.grad(g.sum(), leaves[1])


@pytest.mark.parametrize("implementation", [lowrank, reference])
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.zeros(())}, ValueError, r"x: expected shape \[..., D\], got \[\]"),
        ({"x": torch.zeros(5, 33).int()}, TypeError, "x: expected dtype float32, bfloat16, flo"),
        ({"Wg": torch.zeros(30, 4)}, ValueError, r"Wg: expected shape \[33, E\], got \[30, 4\]"),
        ({"Wg": torch.zeros(33, 0)}, ValueError, "Wg: expected 1 to 128 columns, got 0"),
        ({"Wg": torch.zeros(33, 129)}, ValueError, "Wg: expected 1 to 128 columns, got 129"),
        ({"Wg": torch.zeros(33, 4).half()}, TypeError, "Wg: expected dtype torch.float32 or tor"),
        ({"Wn": torch.zeros(33, 5)}, ValueError, r"Wn: expected shape \[33, 4\], got \[33, 5\]"),
        ({"Wn": None}, ValueError, "eps: noise needs both Wn and eps, or neither"),
        ({"eps": None}, ValueError, "eps: noise needs both Wn and eps, or neither"),
        ({"eps": torch.zeros(3, 4)}, ValueError, r"eps: expected shape \[5, 4\], got \[3, 4\]"),
        ({"eps": torch.zeros(5, 4).double()}, TypeError, "eps: expected dtype torch.float32"),
        ({"topk": 0}, ValueError, "topk: expected 1 to 4, got 0"),
        ({"topk": 5}, ValueError, "topk: expected 1 to 4, got 5"),
        ({"floor": 0.0}, ValueError, "floor: expected a positive number, got 0.0"),
    ],
)
def test_errors(implementation, change, error, message):
    (x, Wg, Wn), eps = inputs((5,), dtype=torch.float32)
    with pytest.raises(error, match=f"^{message}"):
        implementation.noisy_gate(**({"x": x, "Wg": Wg, "Wn": Wn, "eps": eps} | change))


def test_op_checks_for_itself():
    (x, Wg, Wn), eps = inputs((5,), dtype=torch.float32)
    for arguments, message in (
        ((x[0], Wg, Wn, eps, 4, 0.1), r"x: expected shape \[any, any\], got \[33\]"),
        ((x, Wg[:, :0], None, None, 1, 0.1), "Wg: expected 1 to 128 columns, got 0"),
        ((x, Wg, None, eps, 4, 0.1), "eps: noise needs both Wn and eps, or neither"),
        ((x, Wg, Wn, eps, 5, 0.1), "topk: expected 1 to 4, got 5"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            ops.lowrank_noisy_gate(*arguments)
