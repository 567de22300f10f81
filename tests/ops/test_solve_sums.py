"""Gram and cross-Gram matrices, projections, energies, and what is made of Gram matrices."""

from __future__ import annotations

import pytest
import torch

from pyext.ops import solve
from pyext.reference import solve as reference
from tests.ops.agreement import DTYPES, assert_same_on_any_threads, random
from tests.ops.solve_layers import relative

ops = torch.ops.pyext

# Sums of some thousand products in float64: their order moves them by far less. What is rounded to
# float32 once is off by half a unit in the last place.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-7}

SMALL = [(1, 1), (5, 3), (19, 17), (40, 66)]
SHAPES = [*SMALL, (300, 130), (700, 33), (70, 257)]


def assert_sums(got, want):
    assert got.shape == want.shape and got.dtype == want.dtype
    assert (got - want).abs().max() <= TOLERANCE[got.dtype] * want.abs().max().clamp(min=1e-30)


def rows_of(rows, d, dtype, seed=0):
    return random(rows, d, seed=seed, dtype=dtype)


def weights_of(rows, kind):
    return {
        "none": None,
        "mask": random(rows, seed=3) > 0,
        "weight": random(rows, seed=3).abs().float() * (random(rows, seed=4) > -1),
    }[kind]


def segments_of(rows, segments):
    if segments == 1:
        return None
    seg = torch.linspace(1 if rows > 1 else 0, rows, segments + 1).long()
    seg[1] = seg[2]
    return seg


def compare_gram(rows, d, dtype, sums=torch.float64, weights="none", segments=1):
    x, weight, seg = rows_of(rows, d, dtype), weights_of(rows, weights), segments_of(rows, segments)
    if weight is not None:
        x[~(weight > 0)] = torch.nan
    a = random(5, d, seed=2, dtype=dtype)
    start = random(segments, d, d, seed=6, dtype=sums)
    got, want = start.clone(), start.clone()
    h = solve.gram_proj_acc_(got, x, a, row_weight=weight, seg=seg)
    expected = reference.gram_proj_acc_(want, x, a, row_weight=weight, seg=seg)
    assert_sums(got, want)
    assert torch.equal(got.triu(1), start.triu(1))
    assert_sums(h, expected)
    alone = start.clone()
    solve.gram_acc_(alone, x, row_weight=weight, seg=seg)
    assert torch.equal(alone, got)


@pytest.mark.numerics_small
@pytest.mark.parametrize("rows, d", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", ["none", "weight"])
def test_gram_small(rows, d, dtype, weights):
    compare_gram(rows, d, dtype, weights=weights, segments=3)


@pytest.mark.parametrize("rows, d", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", ["none", "mask", "weight"])
def test_gram(rows, d, dtype, weights):
    compare_gram(rows, d, dtype, weights=weights)
    compare_gram(rows, d, dtype, weights=weights, segments=4)


def test_gram_of_more_rows_than_are_packed_at_once():
    compare_gram(2500, 20, torch.float32)
    compare_gram(2500, 20, torch.bfloat16, segments=2)


def test_gram_in_float32():
    compare_gram(100, 40, torch.float32, sums=torch.float32)


def assert_float32_products(got, want, magnitudes):
    """Entries that are off by no more than sums of 256 float32 products may be: each product and
    sum rounds once, and so do the root of a weight and its product with a value, twice each."""
    assert got.shape == want.shape and got.dtype == want.dtype
    assert bool(((got - want).abs() <= (256 + 5) * 2**-24 * magnitudes + 1e-300).all())


def compare_float32_products(rows, d, dtype, weights="none", segments=1):
    x, weight, seg = rows_of(rows, d, dtype), weights_of(rows, weights), segments_of(rows, segments)
    left, a = rows_of(rows, 5, torch.float32, seed=1), random(5, d, seed=2, dtype=dtype)
    options = {"row_weight": weight, "seg": seg}
    for module in (solve, reference):
        got, want, magnitudes = torch.zeros(3, segments, d, d, dtype=torch.float64)
        h = module.gram_proj_acc_(got, x, a, products=torch.float32, **options)
        assert_sums(h, reference.gram_proj_acc_(want, x, a, **options))
        reference.gram_acc_(magnitudes, x.abs(), **options)
        assert_float32_products(got, want, magnitudes)
        alone = torch.zeros_like(got)
        module.gram_acc_(alone, x, products=torch.float32, **options)
        assert torch.equal(alone, got)
        got, want, magnitudes = torch.zeros(3, segments, 5, d, dtype=torch.float64)
        module.cross_acc_(got, left, x, products=torch.float32, **options)
        reference.cross_acc_(want, left, x, **options)
        reference.cross_acc_(magnitudes, left.abs(), x.abs(), **options)
        assert_float32_products(got, want, magnitudes)


NARROW = [dtype for dtype in DTYPES if dtype != torch.float64]


@pytest.mark.numerics_small
@pytest.mark.parametrize("rows, d", SMALL)
@pytest.mark.parametrize("dtype", NARROW)
def test_float32_products_small(rows, d, dtype):
    compare_float32_products(rows, d, dtype, weights="weight", segments=3)


@pytest.mark.parametrize("rows, d", [*SHAPES, (2500, 20)])
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("weights", ["none", "mask", "weight"])
def test_float32_products(rows, d, dtype, weights):
    compare_float32_products(rows, d, dtype, weights=weights)
    compare_float32_products(rows, d, dtype, weights=weights, segments=4)


@pytest.mark.numerics_small
@pytest.mark.parametrize("module", [solve, reference])
def test_where_float32_ends_and_float64_begins(module):
    # In float32 what follows the first chunk would be lost; within a chunk it may not be exact.
    for first, rest, exact in (([4096.0] * 256, 600, True), ([8192.0], 255, False)):
        x = torch.tensor(first + [1.0] * rest)[:, None]
        gram, cross = torch.zeros(2, 1, 1, dtype=torch.float64)
        module.gram_acc_(gram, x, products=torch.float32)
        module.cross_acc_(cross, x, x, products=torch.float32)
        sum_of_squares = len(first) * first[0] ** 2 + rest
        assert (gram.item() == sum_of_squares) is exact
        assert (cross.item() == sum_of_squares) is exact


def test_gram_adds_calls():
    x = rows_of(90, 30, torch.float32)
    whole, parts = (torch.zeros(30, 30, dtype=torch.float64) for _ in range(2))
    solve.gram_acc_(whole, x)
    for part in x.split(40):
        solve.gram_acc_(parts, part)
    assert_sums(parts, whole)


def test_gram_of_strided_rows():
    x = rows_of(60, 50, torch.float32)
    views = [x[::2], x[:, 10:40], x.expand(2, 60, 50), x.reshape(5, 12, 50).transpose(0, 1)]
    for view in views:
        d = view.shape[-1]
        got, want = (torch.zeros(d, d, dtype=torch.float64) for _ in range(2))
        solve.gram_acc_(got, view)
        reference.gram_acc_(want, view.contiguous())
        assert_sums(got, want)
    gram = torch.zeros(50, 2, 50, dtype=torch.float64)[:, 0]
    solve.gram_acc_(gram, x)
    want = torch.zeros(50, 50, dtype=torch.float64)
    reference.gram_acc_(want, x)
    assert_sums(gram, want)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (5, 0)])
def test_gram_of_nothing(shape):
    gram = random(1, shape[-1], shape[-1])
    before = gram.clone()
    h = solve.gram_proj_acc_(gram, torch.zeros(shape), torch.zeros(3, shape[-1]))
    assert torch.equal(gram, before)
    assert torch.equal(h, torch.zeros(torch.zeros(shape).shape[:-1].numel(), 3))


def compare_cross(rows, p, d, left, right, segments=1):
    x, y = rows_of(rows, p, left), rows_of(rows, d, right, seed=1)
    weight = random(rows, seed=3).abs() * (random(rows, seed=4) > -1)
    x[weight == 0] = torch.inf
    seg = torch.linspace(0, rows, segments + 1).long() if segments > 1 else None
    got = random(segments, p, d, seed=5)
    want = got.clone()
    solve.cross_acc_(got, x, y, row_weight=weight, seg=seg)
    reference.cross_acc_(want, x, y, row_weight=weight, seg=seg)
    assert_sums(got, want)


@pytest.mark.numerics_small
@pytest.mark.parametrize("left, right", zip(DTYPES, DTYPES[::-1], strict=True))
def test_cross_small(left, right):
    compare_cross(21, 5, 18, left, right, segments=2)


@pytest.mark.parametrize("rows, p, d", [(1, 1, 1), (300, 20, 150), (40, 140, 33), (2100, 3, 5)])
@pytest.mark.parametrize("left, right", [(DTYPES[0], DTYPES[1]), (DTYPES[3], DTYPES[3])])
def test_cross(rows, p, d, left, right):
    compare_cross(rows, p, d, left, right)
    compare_cross(rows, p, d, left, right, segments=3)


def compare_sumsq(rows, width, dtype):
    y, seg = rows_of(rows, width, dtype), torch.tensor([0, rows // 2, rows])
    bias, weight = random(width, seed=1).float(), random(rows, seed=2).abs().float()
    got = torch.ones(2, dtype=torch.float64)
    want = got.clone()
    solve.sumsq_acc_(got, y, bias=bias, row_weight=weight, seg=seg)
    reference.sumsq_acc_(want, y, bias=bias, row_weight=weight, seg=seg)
    assert_sums(got, want)
    alone, plain = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    solve.sumsq_acc_(alone, y)
    reference.sumsq_acc_(plain, y)
    assert_sums(alone, plain)


@pytest.mark.numerics_small
@pytest.mark.parametrize("dtype", DTYPES)
def test_sumsq_small(dtype):
    compare_sumsq(11, 37, dtype)


@pytest.mark.parametrize("rows, width", [(1, 1), (200, 100), (3, 1000)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sumsq(rows, width, dtype):
    compare_sumsq(rows, width, dtype)


@pytest.mark.numerics_small
@pytest.mark.parametrize("d", [1, 17, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_combined_and_normed_small(d, dtype):
    grams = random(3, d, d, dtype=dtype)  # what lies above the diagonal must not count
    lam, gamma = random(2, 3, seed=1).abs() + 0.1, random(2, 3, seed=2).abs()
    assert_sums(solve.gram_combine(grams, lam, gamma), reference.gram_combine(grams, lam, gamma))
    assert relative(solve.sym_fro_norm(grams), reference.sym_fro_norm(grams)) < 1e-14


@pytest.mark.parametrize("products", [torch.float64, torch.float32])
def test_sums_threads(products):
    x, y = rows_of(600, 140, torch.bfloat16), rows_of(600, 70, torch.float32)
    a = random(9, 140, dtype=torch.float32)
    seg = torch.tensor([0, 90, 600])

    def run():
        gram, cross = torch.zeros(2, 140, 140).double(), torch.zeros(2, 70, 140).double()
        square = torch.zeros(2).double()
        h = solve.gram_proj_acc_(gram, x, a, seg=seg, products=products)
        solve.cross_acc_(cross, y, x, seg=seg, products=products)
        solve.sumsq_acc_(square, x, seg=seg)
        lam = torch.ones(1, 2).double()
        whole = solve.gram_combine(gram, lam, lam)
        return [gram, h, cross, square, whole, solve.sym_fro_norm(gram)]

    assert_same_on_any_threads(run)


def test_sums_opcheck():
    x, seg = rows_of(10, 4, torch.float32), torch.tensor([0, 4, 10])
    grams, weight = torch.zeros(2, 4, 4).double(), torch.ones(10)
    lam = torch.ones(3, 2).double()
    check = torch.library.opcheck
    for products in (torch.float64, torch.float32):
        check(ops.solve_gram_acc_.default, (grams, x, weight, seg, products))
        check(ops.solve_gram_proj_acc_.default, (grams, x, x[:3].clone(), weight, seg, products))
        check(ops.solve_cross_acc_.default, (grams, x, x.clone(), weight, seg, products))
    check(ops.solve_sumsq_acc_.default, (grams[:, 0, 0].clone(), x, None, weight, seg))
    check(ops.solve_gram_combine.default, (grams, lam, lam))
    check(ops.solve_sym_fro_norm.default, (grams,))


def test_sums_compile_without_a_break():
    x, a = rows_of(30, 8, torch.float32), random(3, 8, dtype=torch.float32)

    def run(gram):
        h = solve.gram_proj_acc_(gram, x, a, products=torch.float32)
        return h, solve.sym_fro_norm(gram)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    grams = [torch.zeros(1, 8, 8, dtype=torch.float64) for _ in range(2)]
    for got, want in zip(compiled(grams[0]), run(grams[1]), strict=True):
        assert torch.equal(got, want)
    assert torch.equal(*grams)


GRAM = torch.zeros(2, 4, 4, dtype=torch.float64)
X = torch.zeros(6, 4)


@pytest.mark.parametrize("module", [solve, reference])
@pytest.mark.parametrize(
    "gram, x, options, error, message",
    [
        (GRAM, X, {}, ValueError, "^seg: expected the offsets of 2 segments, got none$"),
        (GRAM, X[:, :3], {}, ValueError, r"^gram: expected shape \[S, 3, 3\], got \[2, 4, 4\]$"),
        (GRAM.long(), X, {}, TypeError, "^gram: expected dtype torch.float64 or torch.float32, "),
        (GRAM, X.int(), {}, TypeError, "^x: expected dtype float32, bfloat16, float16, float64, "),
        (GRAM, X.T[:4, :4], {}, ValueError, "^x: expected a contiguous last dimension"),
        (
            GRAM[:1],
            X,
            {"row_weight": torch.tensor([1.0, 1, -2, 1, 1, 1])},
            ValueError,
            "^row_weight: expected no negative weight, got -2 at row 2$",
        ),
        (GRAM[:1], X, {"row_weight": X[0]}, ValueError, r"^row_weight: expected shape \[6\], got"),
        (
            GRAM,
            X,
            {"seg": torch.tensor([0, 4, 3])},
            ValueError,
            r"^seg: expected rising offsets within \[0, 6\], got \[0, 4, 3\]$",
        ),
        (GRAM, X, {"seg": torch.tensor([0, 4, 7])}, ValueError, "^seg: expected rising offsets"),
        (GRAM, X, {"seg": torch.tensor([0, 6])}, ValueError, r"^seg: expected shape \[3\], got"),
        (
            GRAM[:1],
            X,
            {"products": torch.float16},
            TypeError,
            "^products: expected torch.float64 or torch.float32, got torch.float16$",
        ),
        (
            GRAM[:1],
            X.double(),
            {"products": torch.float32},
            TypeError,
            "^products: expected float64 for x in float64, got float32$",
        ),
        (
            GRAM[:1],
            torch.zeros(6, 4, requires_grad=True),
            {},
            NotImplementedError,
            "^x: this function has no gradient; detach it",
        ),
    ],
)
def test_gram_errors(module, gram, x, options, error, message):
    before = gram.clone()
    with pytest.raises(error, match=message):
        module.gram_acc_(gram, x, **options)
    assert torch.equal(gram, before)


@pytest.mark.parametrize("module", [solve, reference])
def test_other_errors(module):
    one = torch.ones(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="^left: expected 6 rows as right, got 5$"):
        module.cross_acc_(GRAM[:1], X[:5], X)
    for left, right, name in ((X.double(), X, "left"), (X, X.double(), "right")):
        with pytest.raises(TypeError, match=f"^products: expected float64 for {name} in float64"):
            module.cross_acc_(GRAM[:1], left, right, products=torch.float32)
    with pytest.raises(ValueError, match=r"^lam: expected positive values, got 0 at \[0, 0\]$"):
        module.gram_combine(GRAM, 0 * one, one)
    with pytest.raises(ValueError, match=r"^gamma: expected no negative value, got -1 at "):
        module.gram_combine(GRAM, one, -one)
    with pytest.raises(TypeError, match="^out: expected dtype torch.float64"):
        module.sumsq_acc_(torch.zeros(1), X)


def test_the_ops_themselves_refuse_types_of_products():
    for x, products in ((X, torch.float16), (X.double(), torch.float32)):
        with pytest.raises(TypeError, match="^products: expected float64"):
            ops.solve_gram_acc_(GRAM[:1], x, None, None, products)
        with pytest.raises(TypeError, match="^products: expected float64"):
            ops.solve_cross_acc_(GRAM[:1], x, X, None, None, products)


def test_the_ops_themselves_refuse_gradients():
    x = torch.zeros(6, 4, requires_grad=True)
    with pytest.raises(NotImplementedError, match="^x: this function has no gradient"):
        ops.solve_gram_acc_(GRAM[:1], x)
    with torch.no_grad():
        ops.solve_gram_acc_(GRAM[:1].clone(), x)
