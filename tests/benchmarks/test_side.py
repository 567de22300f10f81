"""The shapes of the benchmark, the work counted in them, and the claims."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import side, side_work
from benchmarks.harness import Row, Timing, Unavailable, Work
from benchmarks.measure import prepare
from benchmarks.side import BOTH, COMPILED, DTYPES, EAGER, FORWARD, LIMIT, OURS, PASSES, THREADS
from benchmarks.side_shapes import POOLS, SHAPES, VSE_TEXT, Pool, Values, make_task
from pyext.reference import side as reference

# Operations of a sample, forward and backward, that the authors' graphs do in eager mode.
PUBLISHED = dict(
    zip(
        SHAPES,
        [(0.40e9, 0.48e9), (3.70e9, 5.41e9), (2.40e9, 3.29e9), (0.61e9, 0.84e9), (1.53e9, 1.67e9)],
        strict=True,
    )
)


def small(shape):
    """The same kind of network or pooling, at small sizes."""
    if isinstance(shape, Pool):
        return replace(shape, batch=2, channels=6, side=4 * shape.r)
    sizes = {"batch": 2, "tokens": 9, "taps": 3, "channels": 8, "width": 6, "out": 8}
    inner = shape.inner and tuple(10 for _ in shape.inner)
    return replace(shape, **sizes, inner=inner, text=min(shape.text, 5))


SMALL = [small(shape) for shape in SHAPES]
of_small_shapes = pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.name)
both_passes = pytest.mark.parametrize("passes", PASSES)


def operations(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


# Work


@of_small_shapes
@both_passes
def test_the_limit_multiplies_as_much_as_is_counted(shape, passes, monkeypatch):
    (case,) = small_cases(monkeypatch, [shape], [torch.float32], passes)
    assert operations(side.limit(case)) == case.work.flops > 0


@of_small_shapes
@both_passes
def test_the_reference_multiplies_as_much_and_for_similarities_of_taps(shape, passes, monkeypatch):
    (case,) = small_cases(monkeypatch, [shape], [torch.float32], passes)
    similarities = 2 * shape.batch * shape.tokens * (shape.taps - 1) ** 2 * shape.width
    own = similarities * (1 if passes == FORWARD else 3) if shape.method == "sherl" else 0
    assert operations(side.eager(case)) == case.work.flops + own


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_work_is_that_of_the_published_graphs(shape):
    forward, both = (side_work.least(shape, torch.float32, backward) for backward in (False, True))
    measured = forward.flops / shape.batch, (both.flops - forward.flops) / shape.batch
    # Eager SHERL also multiplies for the similarities of taps.
    assert measured == pytest.approx(PUBLISHED[shape], rel=0.03)


def test_bytes_are_those_of_taps_matrices_and_result():
    shape = small(VSE_TEXT)
    task = make_task(shape, Values(torch.bfloat16))
    matrices = [x for x in task.leaves if x.dim() == 2 and x.shape != (3, 6)]
    tensors = [*task.arguments[0], *matrices, task.upstream]
    work = side_work.least(shape, torch.bfloat16, backward=False)
    assert work.bytes == sum(x.numel() * x.itemsize for x in tensors)


def test_pooling_reads_maps_and_guide_and_writes_tokens():
    pool = POOLS[0]
    work = side_work.least(pool, torch.bfloat16, backward=False)
    assert work.bytes == 2 * 4 * 256 * (128 * 128 + 2 * 16 * 16)


# Cases and arms


def small_cases(monkeypatch, shapes, dtypes, passes):
    networks = [shape for shape in shapes if not isinstance(shape, Pool)]
    pools = [shape for shape in shapes if isinstance(shape, Pool)]
    monkeypatch.setattr(side, "SHAPES", networks)
    monkeypatch.setattr(side, "POOLS", pools)
    monkeypatch.setattr(side, "DTYPES", dtypes)
    return [case for case in side.cases() if case.stage == passes]


def test_cases_are_all_networks_both_ways_and_all_pools_forward():
    found = [(case.input, case.stage) for case in side.cases()]
    assert len(set(found)) == len(found) == 5 * 2 * 2 + 3 * 2


@both_passes
@pytest.mark.parametrize("dtype", DTYPES)
def test_arms_give_what_is_expected(dtype, passes, monkeypatch):
    shapes = [*SMALL, *map(small, POOLS)]
    family = replace(side.FAMILY, arms={x: side.FAMILY.arms[x] for x in (OURS, EAGER, LIMIT)})
    for case in small_cases(monkeypatch, shapes, [dtype], passes):
        # Of few numbers one that a ReLU cuts off moves a gradient far.
        case = replace(case, tolerance=10 * case.tolerance) if passes == BOTH else case
        left_out, runs = prepare(family, case, [1])
        assert left_out == [] and len(runs) == 3


@of_small_shapes
def test_every_parameter_has_a_gradient(shape):
    task = make_task(shape, Values(torch.float32))
    gradients = side.make_run(getattr(reference, task.function), task, BOTH)()
    assert len({id(leaf) for leaf in task.leaves}) == len(task.leaves)
    assert all(gradient.any() for gradient in gradients)


def test_values_are_the_same_up_to_their_rounding():
    full, rounded, widened = (
        Values(*dtypes)(50)
        for dtypes in [
            (torch.float32, None),
            (torch.bfloat16, None),
            (torch.bfloat16, torch.float64),
        ]
    )
    assert torch.equal(full.bfloat16(), rounded)
    assert torch.equal(widened, rounded.double()) and widened.dtype == torch.float64


def test_text_is_padded_and_nothing_else():
    shape = replace(small(VSE_TEXT), batch=20, tokens=9, text=5)
    mask = make_task(shape, Values(torch.float32)).options["mask"]
    assert mask[:, 5:].all() and mask.any(-1).all() and not mask[:, :5].all()
    assert not (mask[:, 1:5] & ~mask[:, :4]).any()


def test_compiling_is_for_both_passes_only(monkeypatch):
    (case,) = small_cases(monkeypatch, SMALL[:1], [torch.float32], FORWARD)
    with pytest.raises(Unavailable, match="only forward \\+ backward"):
        side.compiled(case)


# Claims

SECONDS = {OURS: 1.15, EAGER: 2.0, COMPILED: 1.2, LIMIT: 1.0}
WANTED = [1.2, 1.3, 1.25, 1.5, 1, 1.5, 2]


def row(name, stage, arm, threads, seconds):
    timing = Timing(median=seconds, lower=seconds, upper=seconds, runs=3)
    return Row(name, stage, arm, threads, Work(1, 1), timing=timing)


@pytest.fixture
def times(monkeypatch):
    """Seconds with which all claims hold, by input, stage, arm and threads."""
    monkeypatch.setattr(side, "multiplies_bfloat16", lambda: True)
    return {
        (case.input, case.stage, arm, threads): seconds
        * (0.5 if case.data.dtype == torch.bfloat16 else 1)
        for case, (arm, seconds), threads in product(side.cases(), SECONDS.items(), THREADS)
    }


def claims_of(times):
    return side.claims([row(*key, seconds) for key, seconds in times.items()])


def key(shape, dtype, passes, arm, threads=2):
    return side.input_name(shape, dtype), passes, arm, threads


def test_claims_are_on_ratios_of_times(times):
    claims = claims_of(times)
    assert [claim.wanted for claim in claims] == WANTED
    assert [claim.measured for claim in claims] == pytest.approx(
        [1.15, 1.15, 2 / 1.15, 2 / 1.15, 1.2 / 1.15, 2, 1.15]
    )
    assert all(claim.held for claim in claims)


@pytest.mark.parametrize(
    ("slow", "failing"),
    [
        (key(SHAPES[1], torch.bfloat16, FORWARD, OURS), {0, 5}),
        (key(SHAPES[4], torch.float32, BOTH, OURS, 1), {1, 2, 4}),
        (key(VSE_TEXT, torch.float32, BOTH, OURS), {1, 2, 3, 4}),
        (key(POOLS[2], torch.float32, FORWARD, OURS), {6}),
    ],
)
def test_one_slow_row_fails_its_claims_and_is_named(slow, failing, times):
    claims = claims_of(times | {slow: 2.5 * times[slow]})
    assert {i for i, claim in enumerate(claims) if claim.held is False} == failing
    name = slow[0].partition(" (")[0]
    assert all(name in claims[i].text for i in failing)


def test_what_is_missing_leaves_a_claim_open_unless_another_row_fails_it(times):
    missing = key(SHAPES[1], torch.bfloat16, FORWARD, OURS)
    del times[missing]
    forward, _, _, _, _, gain, _ = claims_of(times)
    assert forward.held is None and forward.text.endswith("1 of 20 not measured")
    assert gain.held is None
    slow = key(SHAPES[2], torch.bfloat16, FORWARD, OURS)
    assert claims_of(times | {slow: 1.0})[0].held is False


def test_without_rows_or_bfloat16_units_claims_stay_open(times, monkeypatch):
    assert [claim.held for claim in side.claims([])] == [None] * 7
    monkeypatch.setattr(side, "multiplies_bfloat16", lambda: False)
    assert [claim.held for claim in claims_of(times)] == [True] * 5 + [None, True]
