"""The gated sum of low-rank adapters."""

from __future__ import annotations

import pytest
import torch

from pyext import runtime
from pyext.interface.lowrank_checks import ACTIVATIONS
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

OPTIONS = {"has_inner": [True, True, False], "ranks": [5, 3, 4]}
NAMES = ("x", "A", "B", "base", "a", "c", "M", "m", "scale", "gate")


def inputs(rows=19, width=37, out=21, count=3, rank=5, dtype=torch.float64, seed=0):
    """All tensors of a mixture, x and base in the dtype, the others in float32 or float64."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = ((rows, width), (count, rank, width), (count, rank, out), (rows, out), (count, rank))
    rest = ((count, out), (count, rank, rank), (count, rank), (count,), (rows, count))
    return {
        name: random(*shape, seed=seed + i, dtype=dtype if name in ("x", "base") else wide)
        for i, (name, shape) in enumerate(zip(NAMES, shapes + rest, strict=True))
    }


def compare(tensors, dtype, **options):
    """Against the reference: the result and all gradients."""
    leaves = [t.requires_grad_() for t in tensors.values()]
    got, g_got = gradients(lambda: lowrank.mix(**tensors, **options), leaves)
    want, g_want = gradients(lambda: reference.mix(**tensors, **options), leaves)
    assert_near(got[0], want[0], 2, "y", dtype=dtype)
    # Sums over the rows may cancel, and some tensors hold one number: those share a scale.
    small = [i for i, name in enumerate(tensors) if name in ("a", "c", "M", "m", "scale")]
    for i, name in enumerate(tensors):
        if i not in small:
            assert_near(g_got[i], g_want[i], 8, name, dtype=dtype)
    if small:
        together = [torch.cat([g[i].flatten() for i in small]) for g in (g_got, g_want)]
        assert_near(*together, 8, "small", dtype=dtype)


@pytest.mark.numerics_small
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_mix_small(act):
    for dtype in DTYPES[:3]:
        compare(inputs(dtype=dtype), dtype, act=act, **OPTIONS)


@pytest.mark.numerics_small
@pytest.mark.parametrize("frozen", [[True, True, False], [True, True, True]])
def test_mix_of_frozen_adapters(frozen):
    tensors = inputs(dtype=torch.float32)
    compare(tensors, torch.float32, frozen=frozen, **OPTIONS)
    y = lowrank.mix(**tensors, frozen=frozen, **OPTIONS)
    own = [tensors[name] for name in ("A", "B", "a", "c", "scale")]
    for gradient in torch.autograd.grad(y.sum(), own):
        for e, still in enumerate(frozen):
            assert still == (not gradient[e].any())


# Widths around a register, around what a cache holds at a time, ranks around a panel.
@pytest.mark.parametrize(
    "rows, width, out", [(1, 1, 1), (33, 16, 17), (100, 257, 130), (5, 520, 64)]
)
@pytest.mark.parametrize("count, rank", [(1, 1), (1, 8), (3, 8), (2, 16), (2, 20)])
def test_mix_shapes(rows, width, out, count, rank):
    rank = min(rank, width, out)
    for dtype in DTYPES:
        tensors = inputs(rows, width, out, count, rank, dtype)
        compare(tensors, dtype, has_inner=[e % 2 == 0 for e in range(count)])


@pytest.mark.numerics_small
@pytest.mark.parametrize(
    "missing",
    [("base",), ("a", "c"), ("gate",), ("scale", "gate"), ("M", "m"), ("m",), NAMES[3:]],
)
def test_mix_without(missing):
    tensors = {k: v for k, v in inputs(dtype=torch.float32).items() if k not in missing}
    inner = OPTIONS["has_inner"] if "M" in tensors else None
    compare(tensors, torch.float32, has_inner=inner, ranks=OPTIONS["ranks"])


# Widths and ranks around pairs of values, around a panel and half of one.
@pytest.mark.parametrize(
    "rows, width, out, rank", [(19, 37, 21, 5), (40, 64, 48, 8), (33, 300, 17, 11), (3, 1, 1, 1)]
)
def test_mix_takes_factors_of_the_dtype_of_x(rows, width, out, rank):
    tensors = inputs(rows, width, out, rank=rank)
    for name in tensors.keys() - {"scale", "gate"}:
        tensors[name] = tensors[name].bfloat16()
    for name in ("scale", "gate"):
        tensors[name] = tensors[name].float()
    inner = OPTIONS["has_inner"]
    for isa in runtime.isas():
        with runtime.use_isa(isa):
            compare(tensors, torch.bfloat16, has_inner=inner)
            y = lowrank.mix(**tensors, has_inner=inner)
            (gradient,) = torch.autograd.grad(y.sum(), tensors["A"])
            assert gradient.dtype == torch.bfloat16


def test_results_are_rounded_as_torch_rounds():
    smallest = torch.finfo(torch.float32).smallest_normal
    numbers = [0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3.4e38, torch.inf, torch.nan]
    numbers += [smallest, smallest / 2, smallest * 1.01, smallest * 0.77, smallest * 2**-20]
    values = torch.tensor([sign * x for sign in (1, -1) for x in numbers])
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    for isa in runtime.isas():
        with runtime.use_isa(isa):
            y = lowrank.mix(one, torch.ones(1, 1, 1), values.view(1, 1, -1))
        torch.testing.assert_close(y[0], values.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_mix_of_loras_is_their_sum():
    x, A, B, base = (inputs()[name] for name in ("x", "A", "B", "base"))
    want = base + sum(x @ A[e].T @ B[e] for e in range(3))
    torch.testing.assert_close(lowrank.mix(x, A, B, base), want)


def test_what_lies_beyond_a_rank_is_not_read():
    tensors = inputs()
    for e, rank in enumerate(OPTIONS["ranks"]):
        for name in ("A", "B", "a", "m"):
            tensors[name][e, rank:] = torch.nan
        tensors["M"][e, rank:] = torch.nan
        tensors["M"][e, :, rank:] = torch.nan
    tensors["M"][2] = torch.nan  # has no inner map
    y = lowrank.mix(**tensors, **OPTIONS)
    torch.testing.assert_close(y, lowrank.mix(**inputs(), **OPTIONS))
    leaves = [t.requires_grad_() for t in tensors.values()]
    for gradient in torch.autograd.grad(lowrank.mix(**tensors, **OPTIONS).sum(), leaves):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_a_row_does_not_depend_on_its_neighbours(dtype):
    tensors = inputs(rows=70, dtype=dtype)
    tensors["A"] = tensors["A"].to(dtype)
    whole = lowrank.mix(**tensors, **OPTIONS)
    for first, last in ((0, 1), (3, 40), (69, 70)):
        part = {k: v[first:last] if k in ("x", "base", "gate") else v for k, v in tensors.items()}
        assert torch.equal(lowrank.mix(**part, **OPTIONS), whole[first:last])


def test_leading_dimensions():
    tensors = inputs(rows=12)
    flat = lowrank.mix(**tensors, **OPTIONS)
    for name in ("x", "base", "gate"):
        tensors[name] = tensors[name].view(2, 6, -1)
    assert torch.equal(lowrank.mix(**tensors, **OPTIONS), flat.view(2, 6, -1))


@pytest.mark.numerics_small
@pytest.mark.parametrize("implementation", [lowrank, reference])
def test_mix_in_place(implementation):
    tensors = inputs(dtype=torch.float32)
    leaves = [t.requires_grad_() for t in tensors.values()]

    def run(inplace):
        base = tensors["base"] * 1
        y = implementation.mix(**tensors | {"base": base}, **OPTIONS, inplace=inplace)
        assert (y is base) == inplace
        return y

    got, g_got = gradients(lambda: run(True), leaves)
    want, g_want = gradients(lambda: run(False), leaves)
    for a, b in zip(got + g_got, want + g_want, strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert torch.equal(run(True), want[0])


def test_who_saved_the_base_hears_of_the_writing():
    x, A, B = (inputs()[name] for name in ("x", "A", "B"))
    base = inputs()["base"].requires_grad_().exp()  # its gradient needs the result
    with torch.no_grad():
        lowrank.mix(x, A, B, base, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        base.sum().backward()


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_mix_gradcheck(act):
    tensors = inputs(rows=4, width=6, out=5, count=3, rank=2)
    options = {"has_inner": [True, False, True], "ranks": [2, 1, 2], "act": act}
    leaves = [t.requires_grad_() for t in tensors.values()]
    assert torch.autograd.gradcheck(
        lambda *t: lowrank.mix(**dict(zip(tensors, t, strict=True)), **options), leaves
    )


def test_second_derivatives_are_refused():
    tensors = inputs()
    y = lowrank.mix(**tensors | {"x": tensors["x"].requires_grad_()}, **OPTIONS)
    (gradient,) = torch.autograd.grad(y.sum(), tensors["x"], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        torch.autograd.grad(gradient.sum(), tensors["x"])


def test_mix_threads():
    tensors = inputs(rows=700, dtype=torch.float32)  # three slices of rows
    leaves = [t.requires_grad_() for t in tensors.values()]

    def run():
        outputs, grads = gradients(lambda: lowrank.mix(**tensors, **OPTIONS), leaves)
        return [*outputs, *grads]

    assert_same_on_any_threads(run)


@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_agree(dtype):
    for isa in runtime.isas():
        with runtime.use_isa(isa):
            compare(inputs(rows=50, dtype=dtype), dtype, act="gelu", **OPTIONS)


def raw_arguments(dtype=torch.float32, grad=True):
    t = {k: v.requires_grad_(grad) for k, v in inputs(rows=5, dtype=dtype).items()}
    rest = (t[name] for name in ("A", "B", "a", "c", "M", "m", "scale", "gate"))
    return t["x"], t["base"], *rest, [True, False, True], [5, 3, 4], [False, True, False], "silu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mix_opcheck(dtype):
    torch.library.opcheck(ops.lowrank_mix.default, raw_arguments(dtype))
    x, base, *rest = raw_arguments(dtype, grad=False)
    torch.library.opcheck(ops.lowrank_mix_.default, (base, x, *rest))


@pytest.mark.parametrize("inplace", [False, True])
def test_mix_compiles_whole(inplace):
    tensors = inputs(dtype=torch.float32)
    leaves = [t.requires_grad_() for t in tensors.values()]

    def step(*given):
        own = dict(zip(tensors, given, strict=True))
        own["base"] = own["base"] * 1
        return lowrank.mix(**own, **OPTIONS, inplace=inplace)

    whole = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, g_got = gradients(lambda: whole(*tensors.values()), leaves)
    want, g_want = gradients(lambda: step(*tensors.values()), leaves)
    for a, b in zip(got + g_got, want + g_want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("implementation", [lowrank, reference])
def test_mix_of_nothing(implementation):
    tensors = inputs(rows=0)
    leaves = [t.requires_grad_() for t in tensors.values()]
    y = implementation.mix(**tensors, **OPTIONS)
    assert y.shape == (0, 21)
    for gradient in torch.autograd.grad(y.sum(), leaves, allow_unused=True):
        assert gradient is None or not gradient.any()
    tensors = inputs(count=0)
    y = implementation.mix(**tensors, has_inner=[])
    assert torch.equal(y, tensors["base"])


def change(**tensors):
    return tensors


@pytest.mark.parametrize(
    "given, error, message",
    [
        (change(x=random(19, 36)), ValueError, r"x is \[19, 36\] and A is \[3, 5, 37\], expected"),
        (change(x=random(19, 37).long()), TypeError, "x: expected dtype float32, bfloat16"),
        (change(A=random(3, 5, 37).half()), TypeError, "A: expected dtype torch.float64 or torch"),
        (change(A=random(2, 5, 37)), ValueError, r"B: expected shape \[2, 5, ...\] for A \[2, 5, "),
        (change(B=random(3, 4, 21)), ValueError, r"B: expected shape \[3, 5, ...\] for A \[3, 5, "),
        (change(x=random(19, 200), A=random(3, 129, 200)), ValueError,
         "A: expected a rank from 1 to 128, got 129"),
        (change(A=random(3, 38, 37)), ValueError, "A: rank 38 is more than the width 37"),
        (change(base=random(19, 20)), ValueError, r"base: expected shape \[19, 21\], got \[19, 20"),
        (change(gate=random(19, 2)), ValueError, r"gate: expected shape \[19, 3\], got \[19, 2\]"),
        (change(gate=random(19, 3).half()), TypeError, "gate: expected dtype torch.float64, got"),
        (change(scale=random(2)), ValueError, r"scale: expected shape \[3\], got \[2\]"),
        (change(M=random(3, 5, 4)), ValueError, r"M: expected shape \[3, 5, 5\], got \[3, 5, 4\]"),
        (change(has_inner=None), ValueError, "has_inner: expected which adapters have an inner m"),
        (change(has_inner=[True]), ValueError, "has_inner: expected 3 values, one an adapter, got"),
        (change(M=None), ValueError, "M: expected inner maps, as m or has_inner asks for them"),
        (change(ranks=[6, 3, 4]), ValueError, "ranks: expected 0 to 5, got 6 for adapter 0"),
        (change(frozen=[True]), ValueError, "frozen: expected 3 values, one an adapter, got 1"),
        (change(act="swish"), ValueError, "act: expected one of 'identity', 'relu', 'silu'"),
        (change(base=None, inplace=True), ValueError, "base: expected a tensor to write in place"),
        (change(base=random(21, 19).mT, inplace=True), ValueError, "base: expected a contiguous"),
        (change(base=random(19, 21).requires_grad_(), inplace=True), ValueError,
         "base: a leaf that requires a gradient cannot be written in place"),
    ],
)  # fmt: skip
def test_mix_errors(given, error, message):
    for implementation in (lowrank, reference):
        with pytest.raises(error, match=f"^{message}"):
            implementation.mix(**inputs() | OPTIONS | given)


def test_more_adapters_than_a_mixture_has():
    tensors = inputs(count=65)
    for name in ("M", "m"):
        del tensors[name]
    with pytest.raises(ValueError, match="A: expected at most 64 adapters, got 65"):
        lowrank.mix(**tensors)


def test_raw_op_checks_for_itself():
    x, base, A, B, *rest = raw_arguments()
    with pytest.raises(ValueError, match=r"B: expected shape \[3, 5, any\], got \[3, 4, 21\]"):
        ops.lowrank_mix(x, base, A, B[:, :4], *rest)
    with pytest.raises(ValueError, match="ranks: expected 3 values, one an adapter, got 2"):
        ops.lowrank_mix(x, base, A, B, *rest[:-3], [5, 3], *rest[-2:])
    with pytest.raises(ValueError, match="act: expected identity, relu, silu, gelu or tanh, got"):
        ops.lowrank_mix(x, base, A, B, *rest[:-1], "swish")
