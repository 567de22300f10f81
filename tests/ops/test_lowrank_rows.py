"""Low-rank edits of rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyext import runtime
from pyext.interface.lowrank import FORMS
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

FACTOR = 8  # an edit and its gradients are two products, one after the other


def inputs(
    lead=(2, 6),
    width=33,
    rank=3,
    editors=2,
    edits=7,
    dtype=torch.float64,
    weights=None,
    skip=True,
):
    """h, A, B, a, scale; rows in no order, two of them none; the editor of each."""
    h = random(*lead, width, dtype=dtype)
    weights = weights or dtype
    A, B = ((random(editors, rank, width, seed=s) / width**0.5).to(weights) for s in (1, 2))
    a = random(editors, rank, seed=3, dtype=weights)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale = random(editors, seed=4, dtype=wide)
    order = torch.Generator().manual_seed(0)
    rows = torch.randperm(math.prod(lead), generator=order)[:edits]
    if skip and edits > 4:
        rows[[1, 4]] = -1
    group = torch.randint(editors, (edits,), generator=order)
    return [x.requires_grad_() for x in (h, A, B, a, scale)], rows, group


def call(implementation, tensors, rows, group, **options):
    h, A, B, a, scale = tensors
    return implementation.rows(h, A, B, a, rows=rows, group=group, scale=scale, **options)


def compare(tensors, rows, group, **options):
    got, g_got = gradients(lambda: call(lowrank, tensors, rows, group, **options), tensors)
    want, g_want = gradients(lambda: call(reference, tensors, rows, group, **options), tensors)
    dtype = tensors[0].dtype
    assert_near(got[0], want[0], 2, "h")
    for name, a, b in zip(("h", "A", "B", "a", "scale"), g_got, g_want, strict=True):
        assert a.dtype == b.dtype
        assert_near(a, b, FACTOR, f"gradient to {name}", dtype=dtype)


@pytest.mark.numerics_small
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_small(act, form):
    for dtype in DTYPES[:3]:
        compare(*inputs(dtype=dtype), act=act, form=form)


@pytest.mark.numerics_small
@pytest.mark.parametrize("width, rank", [(1, 1), (20, 20), (300, 9)])
def test_small_shapes(width, rank):
    compare(*inputs(width=width, rank=rank, dtype=torch.float32), form="mrt")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
# Fewer values than a vector has, chunks of columns that end anywhere, many rows of few editors, and
# the largest rank.
@pytest.mark.parametrize(
    "width, rank, editors, edits, count",
    [(5, 2, 3, 11, 20), (1030, 4, 3, 24, 64), (96, 6, 1, 257, 257), (128, 128, 2, 9, 16)],
)
def test_agreement(width, rank, editors, edits, count, dtype, form):
    given = inputs((count,), width, rank, editors, edits, dtype)
    compare(*given, act="silu", form=form)


@pytest.mark.parametrize("isa", runtime.isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(isa, dtype):
    with runtime.use_isa(isa):
        compare(*inputs((3, 30), 70, 9, 3, 40, dtype), form="reft", act="gelu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_in_float32_beside_half_precision(dtype):
    compare(*inputs(dtype=dtype, weights=torch.float32), form="mrt", act="tanh")


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("act", ["identity", "silu", "gelu", "tanh"])
def test_gradcheck(act, form, inplace):
    tensors, rows, group = inputs((2, 4), 5, 2, 2, 5)

    def function(*leaves: Tensor) -> Tensor:
        h, *rest = leaves
        return call(lowrank, (h * 1, *rest), rows, group, act=act, form=form, inplace=inplace)

    assert torch.autograd.gradcheck(function, tensors)


def untouched(lead, rows):
    mask = torch.ones(math.prod(lead), dtype=torch.bool)
    mask[rows[rows >= 0]] = False
    return mask.view(lead)


@pytest.mark.numerics_small
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_rows_stay_bit_by_bit(dtype):
    tensors, rows, group = inputs(dtype=dtype)
    with torch.no_grad():
        tensors[0][0, 0, :2] = torch.tensor([math.nan, -0.0])
        rows[rows == 0] = -1
        before = tensors[0].clone()
        rest = untouched((2, 6), rows)
        out = call(lowrank, tensors, rows, group, form="mrt")
        assert torch.equal(tensors[0].view(torch.uint8), before.view(torch.uint8))
        assert not torch.equal(out[~rest], before[~rest])
        assert torch.equal(out[rest].view(torch.uint8), before[rest].view(torch.uint8))
        assert call(lowrank, tensors, rows, group, form="mrt", inplace=True) is tensors[0]
        assert torch.equal(tensors[0].view(torch.uint8), out.view(torch.uint8))


def test_gradient_to_other_rows_is_that_of_the_result():
    tensors, rows, group = inputs(dtype=torch.bfloat16)
    g = random(2, 6, 33, seed=9, dtype=torch.bfloat16)
    (g_h,) = torch.autograd.grad(call(lowrank, tensors, rows, group), tensors[:1], g)
    rest = untouched((2, 6), rows)
    assert torch.equal(g_h[rest], g[rest]) and not torch.equal(g_h[~rest], g[~rest])


@pytest.mark.parametrize("dtype", DTYPES)
def test_start_at_the_identity(dtype):
    """W = R and no bias: the edited rows are those that came, to the last bit."""
    (h, A, _, _, scale), rows, group = inputs(dtype=dtype)
    for form in ("reft", "mrt"):
        out = lowrank.rows(h, A, A, rows=rows, group=group, scale=scale, form=form)
        assert torch.equal(out, h)


@pytest.mark.parametrize("form", FORMS)
def test_in_place_has_the_same_gradients(form):
    tensors, rows, group = inputs(dtype=torch.float32)
    results = []
    for inplace in (False, True):

        def run(inplace=inplace):
            h = tensors[0].sin()  # whose backward does not need its result
            return call(lowrank, (h, *tensors[1:]), rows, group, form=form, inplace=inplace).cos()

        outputs, grads = gradients(run, tensors)
        results.append([*outputs, *grads])
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


def test_in_place_on_a_view():
    tensors, rows, group = inputs(dtype=torch.float32)
    results = []
    for inplace in (False, True):

        def run(inplace=inplace):
            whole = torch.stack([tensors[0].sin(), tensors[0].cos()])
            out = call(lowrank, (whole[1], *tensors[1:]), rows, group, inplace=inplace)
            return whole if inplace else torch.stack([whole[0], out])

        outputs, grads = gradients(run, tensors)
        results.append([*outputs, *grads])
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("wanted", [False, True])
def test_in_place_is_noticed_by_who_saved_the_states(wanted):
    tensors, rows, group = inputs(dtype=torch.float32)
    h, *rest = (x.detach() for x in tensors)
    factor = torch.ones((), requires_grad=True)
    product = (factor * h).sum()
    call(lowrank, (h, *(x.requires_grad_(wanted) for x in rest)), rows, group, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_in_place_in_inference_mode():
    tensors, rows, group = inputs(dtype=torch.float32)
    want = call(lowrank, tensors, rows, group)
    with torch.inference_mode():
        h = tensors[0].clone()
        call(lowrank, (h, *tensors[1:]), rows, group, inplace=True)
    assert torch.equal(h, want)


@pytest.mark.parametrize("inplace", [False, True])
def test_only_wanted_gradients(inplace):
    (h, A, B, a, scale), rows, group = inputs(dtype=torch.float32)
    fixed = h.detach().clone()
    out = lowrank.rows(
        fixed, A, B.detach(), a, rows=rows, group=group, scale=scale.detach(), inplace=inplace
    )
    out.square().sum().backward()
    want = reference.rows(h.detach(), A, B, a, rows=rows, group=group, scale=scale)
    g_A, g_a = torch.autograd.grad(want.square().sum(), (A, a))
    assert_near(A.grad, g_A, FACTOR)
    assert_near(a.grad, g_a, FACTOR)


@pytest.mark.numerics_small
@pytest.mark.parametrize("wanted", range(5))
def test_a_gradient_that_is_not_wanted_is_not_made(wanted):
    (h, *factors), rows, group = inputs(dtype=torch.float32)
    A, B, a, scale = (x.detach() for x in factors)
    options = (A, B, a, rows, group, scale, "silu", "reft")
    _, *saved = ops.lowrank_rows(h.detach(), *options, True)
    every = ops.lowrank_rows_backward(h.detach().cos(), *saved, *options, [True] * 5)
    need = [i == wanted for i in range(5)]
    one = ops.lowrank_rows_backward(h.detach().cos(), *saved, *options, need)
    for i, (got, want) in enumerate(zip(one, every, strict=True)):
        assert torch.equal(got, want) if i == wanted else got.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_indices_of_either_type(dtype):
    tensors, rows, group = inputs(dtype=torch.float32)
    got = call(lowrank, tensors, rows.to(dtype), group.to(dtype))
    assert torch.equal(got, call(lowrank, tensors, rows, group))


@pytest.mark.numerics_small
@pytest.mark.parametrize("implementation", [lowrank, reference])
def test_no_edits(implementation):
    tensors, rows, group = inputs(dtype=torch.float32)
    for none in (rows[:0], torch.full_like(rows, -1)):
        out, grads = gradients(
            lambda none=none: call(implementation, tensors, none, group[: len(none)]), tensors
        )
        assert torch.equal(out[0], tensors[0])
        for g in grads[1:]:
            assert torch.equal(g, torch.zeros_like(g))


@pytest.mark.parametrize("implementation", [lowrank, reference])
def test_no_rows(implementation):
    tensors, rows, group = inputs((0, 3), edits=3, dtype=torch.float32)
    assert len(rows) == 0
    out, grads = gradients(lambda: call(implementation, tensors, rows, group[:0]), tensors)
    assert out[0].shape == (0, 3, 33)
    for g in grads[1:]:
        assert torch.equal(g, torch.zeros_like(g))


# Of one editor, that has more rows than a group; and of more editors than rows.
@pytest.mark.parametrize("editors, edits", [(1, 50), (30, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads(dtype, editors, edits):
    tensors, rows, group = inputs((3, 40), 1500, 5, editors, edits, dtype)

    def run():
        outputs, grads = gradients(
            lambda: call(lowrank, tensors, rows, group, form="reft", act="gelu"), tensors
        )
        return [*outputs, *grads]

    assert_same_on_any_threads(run)


def test_an_edit_depends_on_its_own_row_alone():
    tensors, rows, group = inputs((64,), 300, 4, 3, 24, torch.float32, skip=False)
    with torch.no_grad():
        whole = call(lowrank, tensors, rows, group, form="mrt")
        for k in range(len(rows)):
            one = call(lowrank, tensors, rows[k : k + 1], group[k : k + 1], form="mrt")
            assert torch.equal(one[rows[k]], whole[rows[k]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("save", [False, True])
def test_opcheck(dtype, save):
    (h, A, B, a, scale), rows, group = inputs(dtype=dtype)
    arguments = (A, B, a, rows, group, scale, "silu", "reft")
    if save:
        torch.library.opcheck(ops.lowrank_rows.default, (h, *arguments, True))
    fixed = [x.detach() if isinstance(x, Tensor) else x for x in (h, *arguments)]
    torch.library.opcheck(ops.lowrank_rows.default, (*fixed, save))
    torch.library.opcheck(ops.lowrank_rows_.default, (*fixed, save))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_whole(inplace, frozen):
    tensors, rows, group = inputs(dtype=torch.float32)
    leaves = [x.detach() for x in tensors] if frozen else tensors

    def model(h, A, B, a, scale):
        h = h.sin()
        out = call(lowrank, (h, A, B, a, scale), rows, group, form="mrt", inplace=inplace)
        return out * h

    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    if frozen:
        return assert_near(whole(*leaves), model(*leaves))
    got, want = (gradients(lambda f=f: f(*leaves), leaves) for f in (whole, model))
    for a, b in zip([*got[0], *got[1]], [*want[0], *want[1]], strict=True):
        assert_near(a, b)


def test_second_derivatives_are_refused():
    tensors, rows, group = inputs()
    out = call(lowrank, tensors, rows, group, act="silu")
    (g,) = torch.autograd.grad(out.square().sum(), tensors[1:2], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        torch.autograd.grad(g.sum(), tensors[1:2])


LONG = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"h": torch.zeros(4, 5)}, ValueError, r"h is \[4, 5\] and A is \[2, 3, 33\], expected \["),
        ({"h": torch.zeros(33, 12).double().mT}, ValueError, "h: expected a contiguous tensor"),
        ({"h": torch.zeros(12, 33).long()}, TypeError, "h: expected dtype float32, bfloat16, floa"),
        ({"A": torch.zeros(2, 40, 33).double()}, ValueError, "A: rank 40 is more than the width 3"),
        ({"A": torch.zeros(2, 3, 33).half()}, TypeError, "A: expected dtype torch.float64 or torc"),
        ({"B": torch.zeros(2, 4, 33).double()}, ValueError, r"B: expected shape \[2, 3, 33\], got"),
        ({"a": torch.zeros(2).double()}, ValueError, r"a: expected shape \[2, 3\], got \[2\]"),
        ({"scale": torch.zeros(3).double()}, ValueError, r"scale: expected shape \[2\], got \[3"),
        ({"scale": torch.zeros(2)}, TypeError, "scale: expected dtype torch.float64, got torch.f"),
        ({"rows": torch.zeros(3)}, TypeError, "rows: expected dtype torch.int32 or torch.int64, "),
        ({"rows": torch.tensor([0, 12, 1])}, ValueError,
         "rows: expected rows from -1 to below 12, got 12 at 1"),
        ({"rows": torch.tensor([0, 1, -2])}, ValueError,
         "rows: expected rows from -1 to below 12, got -2 at 2"),
        ({"rows": torch.tensor([5, 1, 5])}, ValueError,
         "rows: two editors address the same position, row 5"),
        ({"rows": torch.tensor([7, 7, 2, 2]), "group": torch.zeros(4).long()}, ValueError,
         "rows: two editors address the same position, row 2"),
        ({"group": None}, ValueError, "group: expected the editor of every row, as there are 2"),
        ({"group": LONG[:2]}, ValueError, r"group: expected shape \[3\], got \[2\]"),
        ({"group": LONG}, ValueError, "group: expected editors from 0 to below 2, got 2 at 2"),
        ({"group": -LONG}, ValueError, "group: expected editors from 0 to below 2, got -1 at 1"),
        ({"act": "swish"}, ValueError, "act: expected one of 'identity', 'relu', 'silu', 'gelu',"),
        ({"form": "lora"}, ValueError, "form: expected one of 'add', 'reft', 'mrt', got 'lora'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("inplace", [False, True])
def test_errors(inplace, change, error, message):
    (h, A, B, a, scale), rows, group = inputs((12,), edits=3)
    arguments = {"h": h, "A": A, "B": B, "a": a, "scale": scale, "rows": rows, "group": group}
    arguments = {
        name: x.detach() if isinstance(x, Tensor) else x for name, x in (arguments | change).items()
    }
    before = arguments["h"].clone()
    for implementation in (lowrank, reference):
        with pytest.raises(error, match=f"^{message}"):
            implementation.rows(**arguments, inplace=inplace)
        assert torch.equal(arguments["h"], before)


def test_leaves_are_not_written():
    tensors, rows, group = inputs()
    for implementation in (lowrank, reference):
        with pytest.raises(ValueError, match="^h: a leaf that requires a gradient cannot be wri"):
            call(implementation, tensors, rows, group, inplace=True)


def test_op_checks_for_itself():
    (h, A, B, a, scale), rows, group = (inputs()[0], *inputs()[1:])
    with pytest.raises(ValueError, match="^act: expected identity, relu, silu, gelu or tanh, got"):
        ops.lowrank_rows(h, A, B, a, rows, group, scale, "x", "add", False)
    with pytest.raises(ValueError, match="^form: expected add, reft or mrt, got x"):
        ops.lowrank_rows(h, A, B, a, rows, group, scale, "relu", "x", False)
    with pytest.raises(ValueError, match="^h: expected a contiguous tensor to write in place"):
        ops.lowrank_rows_(
            h.detach().mT.contiguous().mT, A, B, a, rows, group, scale, "relu", "add", False
        )
