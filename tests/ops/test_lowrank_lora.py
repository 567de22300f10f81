"""Many LoRAs in one batch: shrink, expand, and their gradients."""

from __future__ import annotations

import pytest
import torch

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

NAMES = ("x", "A", "B", "base", "scale")
RAGGED = (3, 5, 0, 1)  # the last adapter of `routes` has few rows, the third none


def inputs(rows=23, width=37, out=21, count=4, rank=5, dtype=torch.float64, extra=0, ranks=None):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    lead = (count, rank) if ranks is None else (sum(ranks),)
    shapes = ((rows, width), (*lead, width), (*lead, out), (rows, out + extra))
    return {
        name: random(*shape, seed=i, dtype=dtype if name in ("x", "base") else wide)
        for i, (name, shape) in enumerate(zip(NAMES, (*shapes, (count,)), strict=True))
    }


def routes(rows=23, count=4):
    """An index a row, some of none; the same as segments; and one adapter that has no row."""
    generator = torch.Generator().manual_seed(rows)
    idx = torch.randint(-1, count - 1, (rows,), generator=generator)
    ends = torch.tensor([0, rows // 3, rows // 3, rows - 1, rows], dtype=torch.int32)
    ids = torch.tensor([count - 1, 0, -1, 0], dtype=torch.int32)
    return {"idx": {"idx": idx}, "int32": {"idx": idx.int()}, "segments": {"segments": (ends, ids)}}


def both(implementation, tensors, route, offset=0, inplace=False, ranks=None):
    route = {**route, "ranks": ranks}
    z = implementation.lora_shrink(tensors["x"], tensors["A"], scale=tensors["scale"], **route)
    base = tensors["base"] * 1
    expand = implementation.lora_expand
    return z, expand(z, tensors["B"], base, offset=offset, inplace=inplace, **route)


def compare(tensors, route, dtype, **options):
    leaves = [t.requires_grad_() for t in tensors.values()]
    got, g_got = gradients(lambda: both(lowrank, tensors, route, **options), leaves)
    want, g_want = gradients(lambda: both(reference, tensors, route, **options), leaves)
    wide = torch.promote_types(dtype, torch.float32)
    assert got[0].dtype == wide
    assert_near(got[0], want[0], 2, "z", dtype=wide)
    assert_near(got[1], want[1], 2, "y", dtype=dtype)
    for name, a, b in zip(tensors, g_got, g_want, strict=True):
        assert_near(a, b, 8, name, dtype=dtype)


@pytest.mark.numerics_small
@pytest.mark.parametrize("ranks", [None, RAGGED])
@pytest.mark.parametrize("route", ["idx", "int32", "segments"])
def test_lora_small(route, ranks):
    for dtype in DTYPES[:3]:
        tensors = inputs(dtype=dtype, extra=6, ranks=ranks)
        compare(tensors, routes()[route], dtype, offset=4, ranks=ranks)


@pytest.mark.parametrize("rows, width, out", [(1, 1, 1), (100, 257, 130), (70, 300, 600)])
@pytest.mark.parametrize("rank", [1, 8, 16, 20])
def test_lora_shapes(rows, width, out, rank):
    for dtype in DTYPES:
        tensors = inputs(rows, width, out, rank=min(rank, width, out), dtype=dtype)
        for route in routes(rows).values():
            compare(tensors, route, dtype)


@pytest.mark.parametrize("rows, width, out", [(100, 257, 130), (70, 300, 600)])
@pytest.mark.parametrize("ranks", [(4, 8, 16, 4), (1, 20, 0, 7), (33, 1, 64, 128)])
def test_ragged_shapes(rows, width, out, ranks):
    for dtype in DTYPES:
        for route in routes(rows).values():
            compare(inputs(rows, width, out, dtype=dtype, ranks=ranks), route, dtype, ranks=ranks)


@pytest.mark.numerics_small
def test_ragged_is_each_adapter_alone_to_the_bit():
    tensors, idx = inputs(dtype=torch.float32, ranks=RAGGED), routes()["idx"]["idx"]
    z, y = both(lowrank, tensors, {"idx": idx}, ranks=RAGGED)
    parts = {name: tensors[name].split(RAGGED) for name in ("A", "B")}
    for e, rank in enumerate(RAGGED):
        rows = idx == e
        assert not z[rows, rank:].any()
        if rank == 0:
            assert torch.equal(y[rows], tensors["base"][rows])
            continue
        own = {name: parts[name][e][None] for name in parts}
        own |= {name: tensors[name][rows] for name in ("x", "base")}
        own["scale"] = tensors["scale"][e : e + 1]
        z_own, y_own = both(lowrank, own, {"idx": torch.zeros(int(rows.sum())).long()})
        assert torch.equal(z[rows, :rank], z_own) and torch.equal(y[rows], y_own)


@pytest.mark.numerics_small
def test_what_is_beyond_a_rank_is_not_read():
    tensors, idx = inputs(dtype=torch.float32, ranks=RAGGED), routes()["idx"]["idx"]
    z = lowrank.lora_shrink(tensors["x"], tensors["A"], idx=idx, ranks=RAGGED)
    own = torch.tensor([*RAGGED, 0])[idx]  # of no adapter, -1, the last: 0
    beyond = torch.arange(5) >= own[:, None]
    assert not z[beyond].any()
    poor = z.masked_fill(beyond, torch.nan).requires_grad_()
    for implementation in (lowrank, reference):
        arguments = (tensors["B"], tensors["base"])
        want = implementation.lora_expand(z, *arguments, idx=idx, ranks=RAGGED)
        got = implementation.lora_expand(poor, *arguments, idx=idx, ranks=RAGGED)
        assert torch.equal(got, want)
        (g,) = torch.autograd.grad(got.sum(), poor)
        assert not g[beyond].any() and g[~beyond].all()


def test_each_row_has_its_own_lora():
    t, route = inputs(), routes()["idx"]
    z, y = both(lowrank, t, route)
    for n, e in enumerate(route["idx"].tolist()):
        want_z = torch.zeros(5).double() if e < 0 else t["scale"][e] * (t["A"][e] @ t["x"][n])
        want_y = t["base"][n] if e < 0 else t["base"][n] + want_z @ t["B"][e]
        torch.testing.assert_close(z[n], want_z)
        torch.testing.assert_close(y[n], want_y)


def test_rows_of_no_adapter_keep_their_bits():
    t = inputs(dtype=torch.bfloat16)
    idx = routes()["idx"]["idx"]
    t["base"][:, 0] = -0.0
    _, y = both(lowrank, t, {"idx": idx})
    assert torch.equal(y[idx < 0].view(torch.int16), t["base"][idx < 0].view(torch.int16))


@pytest.mark.numerics_small
@pytest.mark.parametrize("implementation", [lowrank, reference])
def test_expand_in_place(implementation):
    tensors, route = inputs(dtype=torch.float32, extra=3), routes()["idx"]
    leaves = [t.requires_grad_() for t in tensors.values()]
    got, g_got = gradients(
        lambda: both(implementation, tensors, route, offset=2, inplace=True), leaves
    )
    want, g_want = gradients(lambda: both(implementation, tensors, route, offset=2), leaves)
    for a, b in zip(got + g_got, want + g_want, strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        base = tensors["base"] * 1
        y = implementation.lora_expand(got[0], tensors["B"], base, offset=2, inplace=True, **route)
    assert y is base and torch.equal(y, want[1])


def test_who_saved_the_base_hears_of_the_writing():
    tensors, route = inputs(), routes()["idx"]
    z = lowrank.lora_shrink(tensors["x"], tensors["A"], **route)
    base = tensors["base"].requires_grad_().exp()  # its gradient needs the result
    with torch.no_grad():
        lowrank.lora_expand(z, tensors["B"], base, inplace=True, **route)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        base.sum().backward()


def test_neighbouring_columns_keep_their_bits():
    tensors = inputs(extra=6)
    _, y = both(lowrank, tensors, routes()["idx"], offset=4)
    for part in (slice(0, 4), slice(25, 27)):
        assert torch.equal(y[:, part], tensors["base"][:, part])


def test_a_row_does_not_depend_on_its_neighbours():
    tensors, idx = inputs(rows=90, dtype=torch.float32), torch.zeros(90).long()
    whole = both(lowrank, tensors, {"idx": idx})
    for first, last in ((0, 1), (3, 40), (89, 90)):
        part = {k: v[first:last] if k in ("x", "base") else v for k, v in tensors.items()}
        for a, b in zip(both(lowrank, part, {"idx": idx[first:last]}), whole, strict=True):
            assert torch.equal(a, b[first:last])


def test_strided_rows():
    tensors, route = inputs(), routes()["idx"]
    wide = torch.cat([tensors["x"], tensors["x"]], 1)
    for x in (wide[:, 37:], tensors["x"].mT.contiguous().mT):
        z = lowrank.lora_shrink(x, tensors["A"], **route)
        assert torch.equal(z, lowrank.lora_shrink(tensors["x"], tensors["A"], **route))


def test_lora_gradcheck():
    tensors = inputs(rows=6, width=5, out=4, rank=2)
    leaves = [t.requires_grad_() for t in tensors.values()]
    for route in routes(6).values():
        assert torch.autograd.gradcheck(
            lambda *t, route=route: both(lowrank, dict(zip(NAMES, t, strict=True)), route), leaves
        )


def test_ragged_gradcheck():
    ranks = (2, 1, 3, 0)
    leaves = [t.requires_grad_() for t in inputs(6, width=5, out=4, ranks=ranks).values()]
    for route in routes(6).values():
        assert torch.autograd.gradcheck(
            lambda *t, route=route: both(
                lowrank, dict(zip(NAMES, t, strict=True)), route, ranks=ranks
            ),
            leaves,
        )


def test_second_derivatives_are_refused():
    tensors, route = inputs(), routes()["idx"]
    z = lowrank.lora_shrink(tensors["x"].requires_grad_(), tensors["A"], **route)
    (gradient,) = torch.autograd.grad(z.sum(), tensors["x"], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        torch.autograd.grad(gradient.sum(), tensors["x"])


@pytest.mark.parametrize("ranks", [None, (4, 8, 0, 16)])
def test_lora_threads(ranks):
    tensors, route = inputs(300, 600, dtype=torch.float32, ranks=ranks), routes(300)["idx"]
    leaves = [t.requires_grad_() for t in tensors.values()]

    def run():
        outputs, grads = gradients(lambda: both(lowrank, tensors, route, ranks=ranks), leaves)
        return [*outputs, *grads]

    assert_same_on_any_threads(run)


@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_agree(dtype):
    for isa in runtime.isas():
        with runtime.use_isa(isa):
            for ranks in (None, (3, 17, 0, 8)):
                tensors = inputs(rows=50, dtype=dtype, ranks=ranks)
                compare(tensors, routes(50)["idx"], dtype, ranks=ranks)


@pytest.mark.parametrize("ranks", [None, RAGGED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_opcheck(dtype, ranks):
    t = {k: v.requires_grad_() for k, v in inputs(dtype=dtype, ranks=ranks).items()}
    idx = routes()["idx"]["idx"]
    shrink = (t["x"], t["A"], idx, None, None, t["scale"], ranks)
    torch.library.opcheck(ops.lowrank_lora_shrink.default, shrink)
    z = ops.lowrank_lora_shrink(*shrink).detach().requires_grad_()
    expand = (t["base"], z, t["B"], idx, None, None, 0, ranks)
    torch.library.opcheck(ops.lowrank_lora_expand.default, expand)
    plain = [x.detach() if isinstance(x, torch.Tensor) else x for x in expand]
    torch.library.opcheck(ops.lowrank_lora_expand_.default, tuple(plain))


@pytest.mark.parametrize("ranks", [None, RAGGED])
@pytest.mark.parametrize("inplace", [False, True])
def test_lora_compiles_whole(inplace, ranks):
    tensors, route = inputs(dtype=torch.float32, ranks=ranks), routes()["idx"]
    leaves = [t.requires_grad_() for t in tensors.values()]

    def step(*given):
        own = dict(zip(NAMES, given, strict=True))
        return both(lowrank, own, route, inplace=inplace, ranks=ranks)

    whole = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, g_got = gradients(lambda: whole(*tensors.values()), leaves)
    want, g_want = gradients(lambda: step(*tensors.values()), leaves)
    for a, b in zip(got + g_got, want + g_want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("implementation", [lowrank, reference])
def test_lora_of_no_rows(implementation):
    tensors, route = inputs(rows=0), {"idx": torch.zeros(0).long()}
    z, y = both(implementation, tensors, route)
    assert z.shape == (0, 5) and y.shape == (0, 21)


START, IDS = torch.tensor([0, 10, 23]), torch.tensor([0, 1])


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"x": random(23, 36)}, ValueError, r"x is \[23, 36\] and A is \[4, 5, 37\], expected"),
        ({"x": random(23, 1, 37)}, ValueError, r"x: expected shape \[N, D\], got \[23, 1, 37\]"),
        ({"scale": random(3)}, ValueError, r"scale: expected shape \[4\], got \[3\]"),
        ({"idx": None}, ValueError, "idx: expected either idx or segments"),
        ({"segments": (START, IDS)}, ValueError, "idx: expected either idx or segments"),
        ({"idx": torch.zeros(22).long()}, ValueError, r"idx: expected shape \[23\], got \[22\]"),
        ({"idx": torch.zeros(23)}, TypeError, "idx: expected dtype torch.int32 or torch.int64"),
        ({"idx": torch.full((23,), 4)}, ValueError,
         "idx: expected adapters from -1 to below 4, got 4 at 0"),
        ({"idx": torch.full((23,), -2)}, ValueError,
         "idx: expected adapters from -1 to below 4, got -2 at 0"),
        ({"idx": None, "segments": (START[:2], IDS)}, ValueError,
         r"segments\[0\]: expected shape \[3\], got \[2\]"),
        ({"idx": None, "segments": (torch.tensor([0, 24, 23]), IDS)}, ValueError,
         r"segments\[0\]: expected to rise from 0 to 23, got \[0, 24, 23\]"),
        ({"idx": None, "segments": (torch.tensor([1, 10, 23]), IDS)}, ValueError,
         r"segments\[0\]: expected to rise from 0 to 23, got \[1, 10, 23\]"),
        ({"idx": None, "segments": (START, torch.tensor([0, 4]))}, ValueError,
         r"segments\[1\]: expected adapters from -1 to below 4, got 4 at 1"),
    ],
)  # fmt: skip
def test_shrink_errors(given, error, message):
    own = {k: v for k, v in inputs().items() if k in ("x", "A", "scale")}
    for implementation in (lowrank, reference):
        with pytest.raises(error, match=f"^{message}"):
            implementation.lora_shrink(**own | routes()["idx"] | given)


FLAT = random(9, 37)


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"ranks": RAGGED}, ValueError,
         r"x is \[23, 37\] and A is \[4, 5, 37\], expected \[..., D\] and \[sum of ranks, D\]"),
        ({"A": FLAT}, ValueError, r"x is .* expected \[..., D\] and \[E, r, D\]"),
        ({"A": FLAT[:8], "ranks": RAGGED}, ValueError,
         r"A: expected shape \[9, D\], got \[8, 37\]"),
        ({"A": FLAT, "ranks": (3, 5, -1, 2)}, ValueError,
         "ranks: expected 0 to 128, got -1 for adapter 2"),
        ({"A": FLAT, "ranks": (129,)}, ValueError, "ranks: expected 0 to 128, got 129 for adapte"),
        ({"A": FLAT, "ranks": ()}, ValueError, "ranks: expected 1 to 512 adapters, got 0"),
        ({"A": FLAT, "ranks": (1,) * 513}, ValueError,
         "ranks: expected 1 to 512 adapters, got 513"),
        ({"x": random(23, 4), "A": random(9, 4), "ranks": RAGGED}, ValueError,
         "A: rank 5 is more than the width 4"),
        ({"A": FLAT, "ranks": (3, 6)}, ValueError, r"scale: expected shape \[2\], got \[4\]"),
        ({"A": FLAT, "ranks": (3, 6), "scale": random(2), "idx": torch.full((23,), 2)}, ValueError,
         "idx: expected adapters from -1 to below 2, got 2 at 0"),
    ],
)  # fmt: skip
def test_ragged_errors(given, error, message):
    own = {k: v for k, v in inputs().items() if k in ("x", "A", "scale")}
    for implementation in (lowrank, reference):
        with pytest.raises(error, match=f"^{message}"):
            implementation.lora_shrink(**own | routes()["idx"] | given)


def test_as_many_ragged_adapters_as_there_may_be():
    ranks = (1, 2) * 256
    tensors = inputs(dtype=torch.float32, ranks=ranks) | {"scale": random(512, dtype=torch.float32)}
    idx = torch.randint(512, (23,), generator=torch.Generator().manual_seed(0))
    compare(tensors, {"idx": idx}, torch.float32, ranks=ranks)


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"z": random(23, 4)}, ValueError, r"z: expected shape \[23, 5\], got \[23, 4\]"),
        ({"B": random(9, 21), "ranks": RAGGED, "z": random(23, 4)}, ValueError,
         r"z: expected shape \[23, 5\], got \[23, 4\]"),
        ({"B": random(10, 21), "ranks": RAGGED}, ValueError, r"B: expected shape \[9, D\], got"),
        ({"z": random(23, 5).float()}, TypeError, "z: expected dtype torch.float64, got torch.flo"),
        ({"base": random(21)}, ValueError, r"base: expected shape \[N, D\], got \[21\]"),
        ({"base": random(23, 20)}, ValueError, r"offset: 0 and the width 21 of B do not fit base"),
        ({"offset": 1}, ValueError, r"offset: 1 and the width 21 of B do not fit base \[23, 21\]"),
        ({"offset": -1}, ValueError, r"offset: -1 and the width 21 of B do not fit base"),
        ({"idx": torch.full((23,), 4)}, ValueError, "idx: expected adapters from -1 to below 4"),
        ({"base": random(21, 23).mT, "inplace": True}, ValueError, "base: expected a contiguous"),
        ({"base": random(23, 21).requires_grad_(), "inplace": True}, ValueError,
         "base: a leaf that requires a gradient cannot be written in place"),
    ],
)  # fmt: skip
def test_expand_errors(given, error, message):
    own = {"z": random(23, 5), "B": inputs()["B"], "base": inputs()["base"]}
    for implementation in (lowrank, reference):
        with pytest.raises(error, match=f"^{message}"):
            implementation.lora_expand(**own | routes()["idx"] | given)
