"""The map up: norm, activations, scales, dropout, residual, gradients."""

from __future__ import annotations

from typing import Any

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

ACTIVATIONS = ("none", "relu", "gelu", "quick_gelu")
FACTOR = 16  # gradients go through a product, a norm and a second product


def inputs(lead: tuple[int, ...], d: int, E: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of a call, requiring a gradient; small parameters in float32 for half x."""
    small = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {
        "x": random(*lead, d, dtype=dtype),
        "w": (random(E, d, seed=1) / d**0.5).to(dtype),
        "bias": random(E, seed=2, dtype=dtype),
        "gamma": random(E, seed=3, dtype=small),
        "beta": random(E, seed=4, dtype=small),
        "residual": random(*lead, E, seed=5, dtype=dtype),
        "res_scale": random(1, seed=6, dtype=small),
        "out_scale": random(1, seed=7, dtype=small)[0],
    }
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


NORM = ("gamma", "beta")
SCALES = ("residual", "res_scale", "out_scale")


def compare(tensors: dict[str, Tensor], leave_out: tuple[str, ...] = (), **options: Any) -> None:
    given = {name: t for name, t in tensors.items() if name not in leave_out}
    leaves = list(given.values())
    got, g_got = gradients(lambda: side.up(**given, **options), leaves)
    want, g_want = gradients(lambda: reference.up(**given, **options), leaves)
    assert_near(got[0], want[0], 4)
    for name, a, b in zip(given, g_got, g_want, strict=True):
        assert_near(a, b, FACTOR, name, given["x"].dtype)
        assert a.dtype == b.dtype


@pytest.mark.numerics_small
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("leave_out", [(), NORM, NORM + SCALES, ("bias", *SCALES)])
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_small(dtype, leave_out, dropout_p):
    given = inputs((2, 3), 7, 19, dtype)
    compare(given, leave_out, pre_act="relu", dropout_p=dropout_p, seed=2**33 + 5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leave_out", [(), NORM, NORM + SCALES, ("bias", *SCALES)])
@pytest.mark.parametrize("post_act", ACTIVATIONS)
def test_many_rows(dtype, leave_out, post_act):
    compare(inputs((3, 110), 24, 40, dtype), leave_out, pre_act="quick_gelu", post_act=post_act)


@pytest.mark.parametrize("pre_act", ACTIVATIONS)
@pytest.mark.parametrize("post_act", ACTIVATIONS)
def test_activations(pre_act, post_act):
    compare(inputs((5,), 10, 33, torch.float32), (), pre_act=pre_act, post_act=post_act)


@pytest.mark.parametrize("lead", [(), (3,), (2, 1, 3), (0,), (2, 0)])
def test_leading_dimensions(lead):
    compare(inputs(lead, 4, 6, torch.float32), ("gamma", "beta"), post_act="relu")


def test_scales_that_need_no_gradient():
    given = inputs((4,), 5, 6, torch.float32)
    fixed = {k: t.detach() if k in ("res_scale", "out_scale") else t for k, t in given.items()}
    leaves = [t for t in fixed.values() if t.requires_grad]
    got, g_got = gradients(lambda: side.up(**fixed), leaves)
    want, g_want = gradients(lambda: reference.up(**fixed), leaves)
    for a, b in zip([*got, *g_got], [*want, *g_want], strict=True):
        assert_near(a, b, FACTOR)


@pytest.mark.parametrize("leave_out", [(), NORM])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_gradcheck(leave_out, dropout_p):
    given = {k: t for k, t in inputs((2, 3), 4, 5, torch.float64).items() if k not in leave_out}

    def function(*leaves: Tensor) -> Tensor:
        tensors = dict(zip(given, leaves, strict=True))
        return side.up(
            **tensors, pre_act="gelu", post_act="quick_gelu", dropout_p=dropout_p, seed=3
        )

    assert torch.autograd.gradcheck(function, list(given.values()))


# More rows than a block has; also a single block, where threads have no task.
@pytest.mark.parametrize("rows", [600, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_threads(rows, dtype):
    given = inputs((rows,), 72, 300, dtype)
    options = {"pre_act": "relu", "post_act": "gelu", "dropout_p": 0.2, "seed": 9}

    def run():
        outputs, grads = gradients(lambda: side.up(**given, **options), list(given.values()))
        return [*outputs, *grads]

    assert_same_on_any_threads(run)


@pytest.mark.parametrize("isa", runtime.isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(isa, dtype):
    with runtime.use_isa(isa):
        compare(inputs((9,), 10, 35, dtype), (), post_act="gelu", dropout_p=0.5)


def test_dropout_is_the_references():
    """The same elements stay, wherever in the result they are, on both sides of 2^32."""
    x, w = torch.ones(300, 1), torch.ones(70, 1)
    for seed in (0, 1, -7, 2**40 + 3):
        options = {"dropout_p": 0.3, "seed": seed}
        assert torch.equal(side.up(x, w, **options), reference.up(x, w, **options))


def test_frozen_x_gets_no_gradient():
    given = inputs((4,), 5, 6, torch.float32)
    given["x"] = given["x"].detach()
    side.up(**given).sum().backward()
    assert given["x"].grad is None and given["w"].grad is not None


@pytest.mark.parametrize("leave_out", [(), NORM, NORM + SCALES + ("bias",)])
def test_opcheck(leave_out):
    given = inputs((2, 3), 4, 5, torch.float32)
    tensors = {k: None if k in leave_out else t for k, t in given.items()}
    arguments = (tensors["x"], tensors["w"], tensors["bias"], "relu", "gelu", tensors["gamma"],
                 tensors["beta"], 1e-5, *(tensors[k] for k in SCALES), 0.1, 3)  # fmt: skip
    torch.library.opcheck(ops.side_up.default, arguments)


def test_compiles_into_one_graph():
    given = inputs((2, 3), 4, 5, torch.float32)

    def loss(x: Tensor, w: Tensor) -> Tensor:
        return side.up(**(given | {"x": x, "w": w})).square().sum()

    leaves = (given["x"], given["w"])
    want = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*leaves), leaves), want, strict=True):
        torch.testing.assert_close(a, b)


def test_second_derivatives_are_refused():
    given = inputs((2,), 3, 4, torch.float32)
    (g,) = torch.autograd.grad(side.up(**given).square().sum(), given["w"], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        torch.autograd.grad(g.sum(), given["x"])


BAD = {
    "w": ({"w": torch.zeros(5, 3)}, r"^w: expected shape \["),
    "gamma": ({"beta": None}, "^gamma: expected beta beside it, or neither$"),
    "res_scale": ({"residual": None}, "^res_scale: expected residual beside it, got none$"),
    "dropout": ({"dropout_p": 1.0}, "^dropout_p: expected at least 0 and below 1, got 1"),
    "scale": ({"out_scale": torch.zeros(2)}, r"^out_scale: expected one element, got shape \[2\]$"),
    "activation": ({"post_act": "tanh"}, "^post_act: expected one of 'none', 'relu', 'gelu'"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors(case):
    """The same words from the function and from the op."""
    changes, message = BAD[case]
    given = inputs((2, 3), 4, 5, torch.float32) | {"dropout_p": 0.0} | changes
    with pytest.raises(ValueError, match=message):
        side.up(**given)
    plain = {"pre_act": "none", "post_act": "none", "eps": 1e-5, "seed": 0}
    with pytest.raises(ValueError, match=message):
        ops.side_up(**(plain | given))
