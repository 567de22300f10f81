"""Taps merged inside a token by how relevant and how redundant they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyext import runtime
from pyext.ops import side
from pyext.reference import side as reference
from tests.ops.agreement import DTYPES, assert_near, assert_same_on_any_threads, random
from tests.ops.side_mixing import activations, compare, evaluate, leaves, wide

ops = torch.ops.pyext

# Batch, taps, tokens, channels: one tap, channels that fill no vector, taps that fill no tile.
CASES: dict[str, dict[str, Any]] = {
    "plain": {"shape": (2, 3, 5, 7)},
    "affine": {"shape": (2, 6, 4, 33), "affine": True},
    "one tap": {"shape": (3, 1, 4, 16), "affine": True, "add_guide": False},
    "one guide": {"shape": (2, 5, 4, 20), "one_guide": True},
    "one guide for one token": {"shape": (3, 13, 1, 16), "one_guide": True},
    "wide": {"shape": (1, 12, 3, 100), "affine": True},
}


def make_inputs(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: str = "token",
    *,
    affine: bool = False,
    one_guide: bool = False,
    **options: Any,
) -> dict[str, Any]:
    batch, taps, tokens, d = shape
    sums = wide(dtype)
    inputs: dict[str, Any] = {
        "g": random(batch, 1 if one_guide else tokens, d, dtype=dtype),
        "h": activations(batch, taps, tokens, d, dtype, layout),
        "a": random(taps, d, dtype=sums) if affine else None,
        "c": random(taps, d, seed=1, dtype=sums) if affine else None,
        "w": random(d, seed=3, dtype=sums),
        "b": random(1, dtype=dtype),
        # The weights' sum may be small; a large eps keeps the gradients' size.
        "eps_l1": 0.3,
        "eps_l2": 0.1,
    }
    return inputs | options


def check(case: dict[str, Any], dtype: torch.dtype, layout: str) -> None:
    inputs = make_inputs(dtype, layout=layout, **case)
    # beta is not rounded to 16 bits, and in no type do sums over channels and taps differ by more
    # than their order.
    compare(side.antired, reference.antired, inputs, 2, 16)


@pytest.mark.numerics_small
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_agrees_small(case, dtype):
    check(CASES[case], dtype, "token")


@pytest.mark.parametrize("layout", ["layer", "token", "slice"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees(case, dtype, layout):
    check(CASES[case], dtype, layout)


@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_over_many_tokens(dtype):
    check({"shape": (3, 4, 70, 20), "affine": True}, dtype, "token")


@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case):
    inputs = leaves(make_inputs(torch.float64, **(CASES[case] | {"shape": (2, 3, 2, 3)})))
    names = [k for k, x in inputs.items() if isinstance(x, torch.Tensor)]

    def z(*values):
        return side.antired(**(inputs | dict(zip(names, values, strict=True)))).z

    assert torch.autograd.gradcheck(z, [inputs[name] for name in names])


@pytest.mark.numerics_small
@pytest.mark.parametrize("copies", [1, 2, 5, 10])
def test_copies_of_a_tap_share_half_the_weight(copies):
    """Of n equal taps and one orthogonal, all as relevant, that one has 1/2 whatever n is."""
    same, other = torch.eye(2, 4)
    h = torch.stack([same] * copies + [other])[None, :, None]
    guide, zero = (same + other)[None, None], torch.zeros(1)
    eps = {"eps_l1": 1e-9, "eps_l2": 1e-9}
    beta = side.antired(guide, h, None, None, torch.ones(4), zero, **eps).beta
    assert beta[0, 0, -1].item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.numerics_small
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_zero_vectors(dtype):
    """One among others, and all of a token's: nothing is not a number."""
    inputs = make_inputs(dtype, (2, 4, 5, 8))
    inputs["h"][:, 1] = 0
    inputs["h"][0, :, 2] = 0
    inputs["b"] = torch.ones(1, dtype=dtype)
    compare(side.antired, reference.antired, inputs, 2, 16)


@pytest.mark.numerics_small
def test_nothing_relevant():
    """The guide is what is left, and no gradient reaches the gate or the taps."""
    inputs = make_inputs(torch.float32, (2, 3, 5, 7))
    inputs |= {"w": torch.zeros(7), "b": torch.tensor([-1.0])}
    (z, beta), g = evaluate(side.antired, inputs)
    assert torch.equal(z, inputs["g"]) and not beta.any()
    assert not g["w"].any() and not g["b"].any() and not g["h"].any()


@pytest.mark.numerics_small
def test_float16_squares_do_not_overflow():
    h = torch.full((1, 2, 1, 512), 100.0, dtype=torch.float16)
    g = torch.full((1, 1, 512), 100.0, dtype=torch.float16)
    w, b = torch.ones(512), torch.zeros(1)
    z, beta = side.antired(g, h, None, None, w, b, add_guide=False)
    assert_near(beta, torch.full_like(beta, 0.5))
    assert_near(z, h[:, 0])


@pytest.mark.parametrize("case", ["affine", "one guide"])
def test_threads(case):
    inputs = make_inputs(torch.float32, **(CASES[case] | {"shape": (3, 5, 41, 40)}))

    def run():
        outputs, found = evaluate(side.antired, inputs)
        return [*outputs, *found.values()]

    assert_same_on_any_threads(run)


@pytest.mark.parametrize("isa", runtime.isas())
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets(case, dtype, isa):
    with runtime.use_isa(isa):
        check(CASES[case], dtype, "token")


def arguments(inputs: dict[str, Any]) -> tuple[Any, ...]:
    names = ("g", "h", "a", "c", "w", "b", "eps_l1", "eps_l2", "add_guide")
    return tuple(({"add_guide": True} | inputs)[name] for name in names)


@pytest.mark.parametrize("case", ["affine", "one guide"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["layer", "token"])
def test_opcheck(case, dtype, layout):
    inputs = leaves(make_inputs(dtype, layout=layout, **CASES[case]))
    torch.library.opcheck(ops.side_antired.default, arguments(inputs))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_nothing(shape):
    compare(side.antired, reference.antired, make_inputs(torch.float32, shape, affine=True))


def test_errors():
    inputs = make_inputs(torch.float32, (2, 3, 4, 5))
    with pytest.raises(ValueError, match="sherl needs at least one shallow tap plus a guide"):
        side.antired(**(inputs | {"h": inputs["h"][:, :0]}))
    for change, message in (
        ({"g": torch.zeros(2, 3, 5)}, r"g: expected shape \[2, 4, 5\], got \[2, 3, 5\]"),
        ({"w": torch.zeros(4)}, r"w: expected shape \[5\], got \[4\]"),
        ({"h": torch.zeros(2, 3, 4, 6)}, r"(g|h): expected shape"),
    ):
        for call in (side.antired, lambda **x: ops.side_antired(*arguments(x))):
            with pytest.raises(ValueError, match=message):
                call(**(inputs | change))
    with pytest.raises(TypeError, match="h: expected dtype"):
        ops.side_antired(*arguments(inputs | {"h": inputs["h"].double()}))


def test_second_derivatives_are_refused():
    inputs = leaves(make_inputs(torch.float32, (1, 2, 2, 3)))
    z = side.antired(**inputs).z
    (gradient,) = torch.autograd.grad(z.sum(), inputs["g"], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        torch.autograd.grad(gradient.sum(), inputs["h"])
