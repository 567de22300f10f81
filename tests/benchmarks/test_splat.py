"""The scene of the benchmark, and the work counted in it."""

from dataclasses import fields

import pytest
import torch

from benchmarks import splat, splat_work
from benchmarks.harness import Row, Timing, Work
from benchmarks.scenes import surfaces
from pyext.interface.splat_dialects import ALPHA_MIN, TRANSMITTANCE_MIN
from pyext.ops.splat import rasterization


def arguments(scene):
    return tuple(getattr(scene, field.name) for field in fields(scene))


def test_the_same_seed_is_the_same_scene():
    first, second, other = surfaces(50, 64, 48), surfaces(50, 64, 48), surfaces(50, 64, 48, seed=1)
    for a, b in zip(arguments(first), arguments(second), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    assert not torch.equal(first.means, other.means)


def test_the_scene_fills_the_picture_and_has_large_footprints():
    scene = surfaces(2000, 128, 128)
    _, alphas, meta = rasterization(*arguments(scene))
    assert alphas.mean() > 0.5
    assert (meta["radii"].amax(-1) > 128 * 0.25).sum() >= 5


@pytest.mark.parametrize("name", ["gaussians", "width", "height"])
def test_sizes_below_one_are_named(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        surfaces(**{"gaussians": 1, "width": 1, "height": 1, name: 0})


def test_counts_are_those_of_a_plain_loop():
    width, height = 37, 20
    scene = surfaces(60, width, height)
    # Some nearly opaque, so that pixels finish before their lists end.
    scene.opacities[::2] = 0.999
    colors, _, meta = rasterization(*arguments(scene), packed=False)
    counts = splat_work.count(meta, colors.shape[-1])
    rows, contributions = count_by_hand(meta, width, height)
    assert (counts.rows, counts.contributions) == (rows, contributions)
    assert rows > 100 and contributions > rows
    assert counts.pixels == width * height and counts.gaussians == 60


def count_by_hand(meta, width, height):
    """Pixel by pixel over all Gaussians in depth order; a row is of one tile."""
    visible = (meta["radii"][0] > 0).all(-1)
    order = [i for i in meta["depths"][0].argsort().tolist() if visible[i]]
    u, v = meta["means2d"][0].double().unbind(-1)
    a, b, c = meta["conics"][0].double().unbind(-1)
    opacities = meta["opacities"][0].double()
    met, contributions = set(), 0
    for y in range(height):
        for x in range(width):
            transmittance = 1.0
            for i in order:
                dx, dy = u[i] - (x + 0.5), v[i] - (y + 0.5)
                sigma = 0.5 * (a[i] * dx * dx + c[i] * dy * dy) + b[i] * dx * dy
                alpha = min(0.999, float(opacities[i] * torch.exp(-sigma)))
                if alpha < ALPHA_MIN:
                    continue
                met.add((i, y, x // 16))
                if transmittance * (1 - alpha) <= TRANSMITTANCE_MIN:
                    break
                transmittance *= 1 - alpha
                contributions += 1
    return len(met), contributions


def test_work_by_formula():
    counts = splat_work.Counts(
        gaussians=3, visible=2, entries=5, rows=7, contributions=11, pixels=13, channels=3
    )
    assert counts.forward().flops == 250 * 2 + 26 * 16 * 7 + 2 * 3 * 11
    assert counts.backward().flops == 500 * 2 + 26 * 16 * 7 + (45 + 4 * 3) * 11
    assert counts.composite().bytes == 4 * (9 * 2 + 5 + 5 * 13)
    assert counts.composite_backward().bytes == 4 * (2 * 9 * 2 + 2 * 10 * 5 + 4 * 13)


@pytest.fixture
def small_cases(monkeypatch):
    monkeypatch.setattr(splat, "GAUSSIANS", 40)
    monkeypatch.setattr(splat, "SIDE", 24)
    return {case.stage: case for case in splat.cases()}


@pytest.mark.parametrize(
    "stage",
    [splat.FORWARD, splat.BACKWARD, splat.BOTH, splat.COMPOSITE, splat.COMPOSITE_BACKWARD],
)
def test_arms_agree_with_the_reference(stage, small_cases):
    case = small_cases.pop(stage)
    for got, wanted in zip(splat.ours(case)(), splat.expected(case), strict=True):
        assert (got - wanted).norm() <= 1e-4 * wanted.norm()


def test_a_backward_can_be_timed_again_and_again(small_cases):
    run = splat.ours(small_cases[splat.BACKWARD])
    first, second = run(), run()
    assert len(first) == 6
    for x, y in zip(first, second, strict=True):
        assert torch.equal(x, y)


def row(stage, threads, seconds, eager):
    timing = Timing(median=seconds, lower=seconds, upper=seconds, runs=3)
    return Row("i", stage, "pyext", threads, Work(1, 1), timing=timing, times_eager=eager)


ROWS = [row(splat.BOTH, 1, 2.0, 70.0), row(splat.BOTH, 2, 1.25, 90.0)]


def test_claims_read_the_rows(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    faster, scaling, forward, backward = splat.claims(ROWS)
    assert faster.measured == 70 and faster.held
    assert scaling.measured == pytest.approx(1.6) and scaling.held is False
    assert forward.held is None and backward.held is None


def test_claims_without_rows_stay_open():
    assert [claim.held for claim in splat.claims([])] == [None] * 4


def test_one_core_leaves_the_scaling_open(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert splat.claims(ROWS)[1].held is None
