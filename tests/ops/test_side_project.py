"""Taps projected to one width: norms, masks, packed sequences, layouts, gradients."""

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

NORMS = ("none", "layer", "batch")
ACTIVATIONS = ("none", "relu", "gelu", "quick_gelu")
FACTOR = 16  # gradients go through a product, a norm and a second product


def inputs(
    batch: int,
    tokens: int,
    widths: tuple[int, ...],
    d: int,
    dtype: torch.dtype,
    packed: bool = False,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    lead = (batch * tokens,) if packed else (batch, tokens)
    x = [random(*lead, D, seed=k, dtype=dtype) for k, D in enumerate(widths)]
    w = [(random(d, D, seed=9 + k) / D**0.5).to(dtype) for k, D in enumerate(widths)]
    bias = [random(d, seed=20 + k, dtype=dtype) for k in range(len(widths))]
    return tuple([t.requires_grad_() for t in ts] for ts in (x, w, bias))


def compare(lists: tuple[list[Tensor], ...], biased: bool = True, **options: Any) -> None:
    x, w, bias = lists
    bias = bias if biased else []
    leaves = [*x, *w, *bias]
    got, g_got = gradients(lambda: side.project(x, w, bias, **options), leaves)
    want, g_want = gradients(lambda: reference.project(x, w, bias, **options), leaves)
    assert [a.stride() for a in got] == [b.stride() for b in want]
    assert [a.dtype for a in got] == [b.dtype for b in want]
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        # Sums may be of half precision's rounded values.
        assert_near(a, b.to(x[0].dtype), 4, f"output {i}")
    for i, (a, b) in enumerate(zip(g_got, g_want, strict=True)):
        assert_near(a, b, FACTOR, f"gradient {i}")


def some_mask(batch: int, tokens: int) -> Tensor:
    mask = random(batch, tokens, seed=3) < 0.4
    mask[0] = True
    return mask


@pytest.mark.numerics_small
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("layout", ["layer", "token"])
def test_small(norm, dtype, layout):
    lists = inputs(2, 5, (7, 20), 19, dtype)
    compare(lists, norm=norm, mask=some_mask(2, 5), layout=layout, pool=True)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_norms(norm, dtype, masked):
    lists = inputs(3, 70, (24, 40, 24), 48, dtype)
    mask = some_mask(3, 70) if masked else None
    compare(lists, norm=norm, mask=mask, pool=True, pre_act="relu")


@pytest.mark.parametrize("pre_act", ACTIVATIONS)
@pytest.mark.parametrize("post_act", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_activations(pre_act, post_act, dtype):
    compare(inputs(2, 9, (10, 16), 33, dtype), pre_act=pre_act, post_act=post_act, pool=True)


@pytest.mark.numerics_small
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", ["layer", "token"])
def test_packed(norm, layout):
    ends = torch.tensor([0, 3, 3, 9, 20], dtype=torch.int32)
    lists = inputs(1, 20, (8, 8), 16, torch.float32, packed=True)
    compare(lists, norm=norm, cu_seqlens=ends, pool=True, layout=layout)


def test_long_packed_sequences():
    ends = torch.tensor([0, 130, 131, 400], dtype=torch.int32)
    compare(inputs(1, 400, (8,), 16, torch.float32, packed=True), cu_seqlens=ends, pool=True)


def test_without_bias_and_pool():
    compare(inputs(2, 6, (8, 4), 16, torch.float32), biased=False, norm="layer")


@pytest.mark.parametrize("batch, tokens", [(0, 3), (2, 0)])
@pytest.mark.parametrize("norm", NORMS)
def test_of_nothing(batch, tokens, norm):
    x, w, bias = inputs(batch, tokens, (4, 4), 5, torch.float32)
    got = side.project(x, w, bias, norm=norm, pool=tokens > 0)
    want = reference.project(x, w, bias, norm=norm, pool=tokens > 0)
    assert [a.shape for a in got] == [b.shape for b in want]
    for g in torch.autograd.grad(got.h.sum(), [*w, *bias]):
        assert torch.equal(g, torch.zeros_like(g))


def test_sample_without_a_token_that_counts_has_mean_zero():
    x, w, bias = inputs(2, 5, (4,), 6, torch.float32)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1] = False
    pool = side.project(x, w, bias, mask=mask, pool=True).pool
    assert torch.equal(pool[1], torch.zeros_like(pool[1])) and (pool[0] != 0).all()


@pytest.mark.parametrize("norm, post_act", [("none", "gelu"), ("layer", "none"), ("batch", "none")])
@pytest.mark.parametrize("layout", ["layer", "token"])
def test_gradcheck(norm, post_act, layout):
    x, w, bias = inputs(2, 3, (4, 5), 6, torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True]])

    def function(*leaves: Tensor) -> list[Tensor]:
        out = side.project(
            *(leaves[:2], leaves[2:4], leaves[4:]), norm=norm, post_act=post_act, layout=layout,
            pre_act="quick_gelu", mask=mask, pool=True,
        )  # fmt: skip
        return [t for t in out if t.requires_grad and t.numel()]

    assert torch.autograd.gradcheck(function, [*x, *w, *bias])


# More rows than a block has; also a single block, where threads have no task.
@pytest.mark.parametrize("batch, tokens", [(5, 70), (1, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_threads(batch, tokens, dtype):
    x, w, bias = inputs(batch, tokens, (72, 40), 300, dtype)
    options = {"norm": "layer", "mask": some_mask(batch, tokens), "pool": True}

    def run():
        outputs, grads = gradients(lambda: side.project(x, w, bias, **options), [*x, *w, *bias])
        return [*outputs, *grads]

    assert_same_on_any_threads(run)


@pytest.mark.parametrize("isa", runtime.isas())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(isa, dtype):
    with runtime.use_isa(isa):
        compare(inputs(2, 9, (10, 16), 35, dtype), norm="layer", pool=True)
        compare(inputs(2, 9, (10, 16), 35, dtype), pre_act="gelu", post_act="quick_gelu")


def test_frozen_taps_get_no_gradient():
    x, w, bias = inputs(2, 5, (4, 6), 6, torch.float32)
    frozen = [x[0].detach(), x[1]]
    side.project(frozen, w, bias, norm="layer").h.square().sum().backward()
    assert frozen[0].grad is None and frozen[1].grad is not None
    assert all(m.grad is not None for m in (*w, *bias))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", ["layer", "token"])
@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(norm, layout, packed):
    x, w, bias = inputs(2, 3, (4, 5), 6, torch.float32, packed=packed)
    mask = None if packed else some_mask(2, 3)
    ends = torch.tensor([0, 2, 6], dtype=torch.int32) if packed else None
    arguments = (x, w, bias, "relu", "none", norm, 1e-5, mask, ends, layout, True)
    torch.library.opcheck(ops.side_project.default, arguments)


def test_compiles_into_one_graph():
    x, w, bias = inputs(2, 3, (4, 5), 6, torch.float32)

    def loss(*w: Tensor) -> Tensor:
        h, _, _, pool = side.project([t.detach() for t in x], w, bias, norm="layer", pool=True)
        return h.square().sum() + pool.sum()

    want = torch.autograd.grad(loss(*w), w)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*w), w)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_second_derivatives_are_refused():
    x, w, bias = inputs(1, 2, (3,), 4, torch.float32)
    (g,) = torch.autograd.grad(side.project(x, w, bias).h.square().sum(), w, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        torch.autograd.grad(g.sum(), w)


BAD = {
    "activation": ({"pre_act": "tanh"}, "^pre_act: expected one of 'none', 'relu', 'gelu', 'quick"),
    "post": ({"norm": "layer", "post_act": "relu"}, "^post_act: expected 'none' with norm 'layer'"),
    "norm": ({"norm": "group"}, "^norm: expected one of 'none', 'layer', 'batch', got 'group'"),
    "layout": ({"layout": "x"}, "^layout: expected "),
    "mask": ({"mask": torch.ones(2, 4, dtype=torch.bool)}, r"^mask: expected shape \[2, 3\], got"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors(case):
    """The same words from the function and from the op."""
    changes, message = BAD[case]
    x, w, bias = inputs(2, 3, (4, 5), 6, torch.float32)
    with pytest.raises(ValueError, match=message):
        side.project(x, w, bias, **changes)
    plain: dict[str, Any] = {"pre_act": "none", "post_act": "none", "norm": "none", "eps": 1e-5}
    plain |= {"mask": None, "cu_seqlens": None, "layout": "layer", "pool": False}
    with pytest.raises(ValueError, match=message):
        ops.side_project(x, w, bias, **(plain | changes))


@pytest.mark.parametrize("ends", [[1, 6], [0, 5], [0, 4, 2, 6]])
def test_ends_of_sequences_are_checked(ends):
    x, w, bias = inputs(2, 3, (4, 5), 6, torch.float32, packed=True)
    with pytest.raises(ValueError, match="^cu_seqlens: expected ends that rise from 0 to 6, got"):
        side.project(x, w, bias, cu_seqlens=torch.tensor(ends, dtype=torch.int32))
