"""Attention with ReLU scores over many taps."""

from __future__ import annotations

import random as random_module
from typing import Any

import pytest
import torch

from pyext import runtime
from pyext.ops import side
from pyext.reference import side as reference
from tests.ops.agreement import DTYPES, assert_same_on_any_threads, random
from tests.ops.side_mixing import activations, compare, evaluate, leaves, wide

ops = torch.ops.pyext

# Batch, taps, rows, keys, channels; which parts of the op are used.
CASES: dict[str, dict[str, Any]] = {
    "unipt": {"shape": (2, 3, 5, 5, 7), "affine": True, "alpha": True, "rho": 1.0, "mask": True},
    "plain": {"shape": (3, 1, 4, 9, 16), "alpha": True},
    "clip4clip": {"shape": (2, 4, 1, 9, 16), "alpha": True, "base": True, "mode": "clamp"},
    "spatial step": {"shape": (2, 4, 1, 9, 5), "per_tap": True, "bias": True, "base": True,
                     "scale": True, "mask": True},
    "decoder": {"shape": (2, 1, 6, 17, 8), "per_tap": True, "affine": True, "mask": True},
    "per tap": {"shape": (2, 3, 6, 6, 8), "affine": True, "rho": 0.5, "causal": True},
    "all": {"shape": (2, 3, 19, 19, 20), "per_tap": True, "affine": True, "alpha": True,
            "bias": True, "base": True, "scale": True, "rho": 0.3, "causal": True, "mask": True},
    "everything shared": {"shape": (2, 3, 19, 19, 20), "affine": True, "alpha": True, "bias": True,
                          "base": True, "scale": True, "rho": 0.3, "causal": True, "mask": True,
                          "mode": "clamp"},
}  # fmt: skip
# Such as are cut into several parts: many rows, many taps, many samples.
LARGE: dict[str, dict[str, Any]] = {
    "long": {"shape": (1, 2, 430, 430, 16), "affine": True, "alpha": True, "rho": 1.0},
    "long, direct": {"shape": (1, 3, 430, 430, 16), "alpha": True},
    "many taps": {"shape": (2, 12, 90, 90, 64), "affine": True, "alpha": True, "mask": True},
    "many taps, one by one": {"shape": (1, 12, 90, 90, 64), "affine": True},
    "many samples": {"shape": (70, 3, 6, 6, 8), "affine": True, "alpha": True, "mask": True},
    "many, per tap": {"shape": (70, 3, 1, 6, 8), "per_tap": True, "bias": True, "base": True},
}


def make_inputs(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: str = "layer",
    *,
    per_tap: bool = False,
    affine: bool = False,
    alpha: bool = False,
    bias: bool = False,
    base: bool = False,
    scale: bool = False,
    mask: bool = False,
    mode: str = "add",
    **options: Any,
) -> dict[str, Any]:
    batch, taps, rows, keys, d = shape
    sums = wide(dtype)
    inputs: dict[str, Any] = {
        "q": random(*((batch, taps, rows, d) if per_tap else (batch, rows, d)), dtype=dtype),
        "h": activations(batch, taps, keys, d, dtype, layout),
        # Of the size of the scores: where their sum is small, what 16 bits round off in a score
        # would count by as much as the score itself.
        "eps": 0.5 * d**0.5,
        "eps_mode": mode,
    }
    if affine:
        inputs |= {"a": random(taps, d, dtype=sums), "c": random(taps, d, seed=1, dtype=sums)}
    if alpha:
        inputs["alpha"] = random(batch, taps, dtype=sums).softmax(-1)
    if bias:
        inputs["score_bias"] = random(taps, dtype=dtype)
    if base:
        inputs["base_index"] = torch.arange(batch) % keys
    if scale:
        inputs["base_scale"] = random(taps, seed=2, dtype=sums)
    if mask:
        inputs["mask"] = random(batch, keys) > -0.5
    return inputs | options


def check(case: dict[str, Any], dtype: torch.dtype, layout: str) -> None:
    inputs = make_inputs(dtype, layout=layout, **case)
    # In bfloat16 features and scores are rounded too: one that changes sign counts by its share.
    gradient_factor = 16 if dtype == torch.bfloat16 else 8
    compare(side.relu_attend, reference.relu_attend, inputs, 2, gradient_factor, dtype)


@pytest.mark.numerics_small
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_agrees_small(case, dtype):
    check(CASES[case], dtype, "layer")


@pytest.mark.parametrize("layout", ["layer", "token", "slice"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees(case, dtype, layout):
    check(CASES[case], dtype, layout)


@pytest.mark.parametrize("layout", ["layer", "token"])
@pytest.mark.parametrize("case", LARGE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_in_parts(case, dtype, layout):
    check(LARGE[case], dtype, layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_in_parts(dtype):
    """Sequences that are cut in other ways than all of them together would be."""
    inputs = make_inputs(dtype, (1, 2, 1700, 1700, 16), alpha=True)
    inputs["cu_seqlens"] = torch.tensor([0, 430, 1270, 1700], dtype=torch.int32)
    inputs["alpha"] = random(3, 2, dtype=torch.float32).softmax(-1)
    compare(side.relu_attend, reference.relu_attend, inputs, 2, 8, dtype)


def packed_inputs(dtype: torch.dtype, **options: Any) -> dict[str, Any]:
    ends = torch.tensor([0, 4, 4, 11, 12], dtype=torch.int32)
    inputs = make_inputs(dtype, (1, 3, 12, 12, 8), **options)
    inputs["cu_seqlens"] = ends
    if "alpha" in inputs:
        inputs["alpha"] = random(4, 3, dtype=wide(dtype)).softmax(-1)
    return inputs


@pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.numerics_small)]
)
@pytest.mark.parametrize("per_tap", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
def test_packed(dtype, per_tap, alpha):
    inputs = packed_inputs(dtype, per_tap=per_tap, alpha=alpha, affine=True, rho=1.0, causal=True)
    compare(side.relu_attend, reference.relu_attend, inputs, 2)


def test_packed_base():
    """A base is counted within its sequence."""
    inputs = packed_inputs(torch.float64, alpha=True)
    inputs |= {"cu_seqlens": torch.tensor([0, 4, 12], dtype=torch.int32)}
    inputs |= {"alpha": inputs["alpha"][:2], "base_index": torch.tensor([3, 7])}
    compare(side.relu_attend, reference.relu_attend, inputs, 2)


@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case):
    inputs = leaves(make_inputs(torch.float64, **(CASES[case] | {"shape": (2, 2, 3, 3, 2)})))
    names = [k for k, x in inputs.items() if isinstance(x, torch.Tensor) and x.requires_grad]

    def z(*values):
        return side.relu_attend(**(inputs | dict(zip(names, values, strict=True)))).z

    assert torch.autograd.gradcheck(z, [inputs[name] for name in names])


@pytest.mark.numerics_small
def test_rows_without_a_positive_score():
    """Such a row attends to nothing: what is left is the identity, or zero."""
    h = random(2, 3, 5, 8, dtype=torch.float32).abs()
    q = -random(2, 5, 8, dtype=torch.float32).abs()
    alpha = torch.full((2, 3), 1 / 3)
    inputs = {"q": q, "h": h, "alpha": alpha, "rho": 1.0}
    (z, rowsum), g = evaluate(side.relu_attend, inputs)
    assert torch.equal(rowsum, torch.zeros_like(rowsum))
    torch.testing.assert_close(z, h.mean(1))
    assert torch.equal(g["q"], torch.zeros_like(q))
    assert torch.equal(side.relu_attend(q, h).z, torch.zeros_like(h))


@pytest.mark.numerics_small
def test_float16_sums_do_not_overflow():
    """Scores of 512 wide features of size 16 are beyond 65504, their sums further."""
    q, h = torch.full((1, 4, 512), 16.0), torch.full((1, 2, 4, 512), 16.0)
    alpha = torch.tensor([[0.25, 0.75]])
    z, rowsum = side.relu_attend(q.half(), h.half(), alpha=alpha)
    torch.testing.assert_close(z, torch.full_like(z, 16.0))
    torch.testing.assert_close(rowsum, torch.full_like(rowsum, 4 * 512 * 256))


def test_masked_keys_are_not_seen():
    inputs = make_inputs(torch.float32, (2, 3, 5, 9, 8), mask=True, alpha=True)
    changed = inputs["h"].clone()
    changed.transpose(0, 1)[:, ~inputs["mask"]] = 1e3
    expected = side.relu_attend(**inputs)
    for got, want in zip(side.relu_attend(**(inputs | {"h": changed})), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("case", ["unipt", "everything shared", "all", "long", "many taps",
                                  "many taps, one by one", "many samples"])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads(case, dtype):
    inputs = make_inputs(dtype, **(CASES | LARGE)[case])

    def run():
        outputs, found = evaluate(side.relu_attend, inputs)
        return [*outputs, *found.values()]

    assert_same_on_any_threads(run)


@pytest.mark.parametrize("isa", runtime.isas())
@pytest.mark.parametrize("case", ["unipt", "everything shared", "all"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets(case, dtype, isa):
    with runtime.use_isa(isa):
        check(CASES[case], dtype, "layer")


def test_random_calls():
    """Any combination of what the op can do."""
    choose = random_module.Random(0)
    for _ in range(60):
        sizes = [choose.choice(some) for some in ((1, 2, 5), (1, 2, 7), (1, 4, 33), (1, 3, 20))]
        batch, taps, rows, d = sizes
        keys = choose.choice((rows, 1, 18))
        flags = ("per_tap", "affine", "alpha", "bias", "base", "mask")
        case = {name: choose.random() < 0.5 for name in flags}
        case["scale"] = case["base"] and choose.random() < 0.5
        case["mode"] = choose.choice(("add", "clamp"))
        if keys == rows:
            case |= {"rho": choose.choice((0.0, 0.7)), "causal": choose.random() < 0.5}
        layout = choose.choice(("layer", "token", "slice"))
        case["shape"] = (batch, taps, rows, keys, d)
        inputs = make_inputs(torch.float64, layout=layout, **case)
        (got, g_got), (want, g_want) = (
            evaluate(f, inputs) for f in (side.relu_attend, reference.relu_attend)
        )
        # A gradient may be nothing but rounding, where there is one key and the norm moves with it.
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(g_got, g_want, rtol=1e-11, atol=1e-11)


def test_compile():
    """One graph, with the same results and gradients."""
    inputs = make_inputs(torch.float32, **CASES["unipt"])
    compiled = torch.compile(side.relu_attend, fullgraph=True, backend="aot_eager")
    (got, g_got), (want, g_want) = (evaluate(f, inputs) for f in (compiled, side.relu_attend))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert all(torch.equal(g_got[name], g_want[name]) for name in g_want)


def arguments(inputs: dict[str, Any]) -> tuple[Any, ...]:
    names = ("q", "h", "a", "c", "mask", "alpha", "score_bias", "rho", "base_index", "base_scale",
             "eps", "eps_mode", "causal", "cu_seqlens")  # fmt: skip
    defaults = {"rho": 0.0, "causal": False}
    return tuple((defaults | inputs).get(name) for name in names)


@pytest.mark.parametrize("case", ["unipt", "spatial step", "everything shared"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["layer", "token"])
def test_opcheck(case, dtype, layout):
    inputs = leaves(make_inputs(dtype, layout=layout, **CASES[case]))
    torch.library.opcheck(ops.side_relu_attend.default, arguments(inputs))


def test_opcheck_packed():
    inputs = leaves(packed_inputs(torch.float32, alpha=True, affine=True))
    torch.library.opcheck(ops.side_relu_attend.default, arguments(inputs))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4, 5), (2, 0, 4, 4, 5), (2, 3, 0, 4, 5),
                                   (2, 3, 4, 0, 5), (2, 3, 4, 4, 0)])  # fmt: skip
@pytest.mark.parametrize("alpha", [False, True])
def test_nothing(shape, alpha):
    inputs = make_inputs(torch.float32, shape, alpha=alpha, affine=True)
    inputs["eps"] = 1.0
    compare(side.relu_attend, reference.relu_attend, inputs)


def test_what_is_saved_is_inputs_and_row_sums():
    inputs = leaves(make_inputs(torch.float32, **CASES["everything shared"]))
    saved: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        rowsum = side.relu_attend(**inputs).rowsum
    for x in inputs.values():
        if isinstance(x, torch.Tensor):
            saved.pop(x.untyped_storage().data_ptr(), None)
    assert list(saved.values()) == [rowsum.numel() * 4]


ERRORS = [
    ({"rho": 1.0}, r"identity term needs equal query and key lengths \(got 4, 9\)"),
    ({"causal": True}, r"causal needs equal query and key lengths \(got 4, 9\)"),
    ({"base_index": torch.tensor([0, 9])},
     "base_index: expected positions from 0 to below 9, got 9 for sample 1"),
    ({"base_index": torch.tensor([-1, 0])},
     "base_index: expected positions from 0 to below 9, got -1 for sample 0"),
    ({"eps_mode": "max"}, "eps_mode: expected (one of )?'add', 'clamp', got 'max'"),
    ({"mask": torch.ones(2, 8, dtype=torch.bool)},
     r"mask: expected shape \[2, 9\], got \[2, 8\]"),
    ({"h": torch.zeros(2, 3, 9, 4)}, r"h: expected shape \[2, .*5\], got \[2, 3, 9, 4\]"),
    ({"alpha": torch.ones(2, 2)}, r"alpha: expected shape \[2, 3\], got \[2, 2\]"),
]  # fmt: skip


@pytest.mark.parametrize("change, message", ERRORS)
def test_errors(change, message):
    inputs = make_inputs(torch.float32, (2, 3, 4, 9, 5)) | change
    for call in (side.relu_attend, lambda **x: ops.side_relu_attend(*arguments(x))):
        with pytest.raises(ValueError, match=message):
            call(**inputs)


@pytest.mark.parametrize("ends", [[0, 5], [1, 12], [0, 7, 3, 12]])
def test_errors_of_ends(ends):
    inputs = make_inputs(torch.float32, (1, 3, 12, 12, 5))
    inputs["cu_seqlens"] = torch.tensor(ends, dtype=torch.int32)
    with pytest.raises(ValueError, match="^cu_seqlens: expected ends that rise from 0 to 12, got"):
        side.relu_attend(**inputs)


def test_second_derivatives_are_refused():
    q = random(1, 2, 3, dtype=torch.float32).requires_grad_()
    z = side.relu_attend(q, random(1, 2, 2, 3, dtype=torch.float32)).z
    (gradient,) = torch.autograd.grad(z.sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        torch.autograd.grad(gradient.sum(), q)
