"""The scenes of the benchmark: stages agree with plain PyTorch, and claims read the rows."""

import pytest
import torch

from benchmarks import splat, splat_scenes
from benchmarks.harness import Row, Timing, Work, load_family
from benchmarks.scenes import garden
from benchmarks.splat_scenes import DRAW, LARGE, SCENES


@pytest.fixture
def small_cases(monkeypatch):
    monkeypatch.setattr(splat_scenes, "SCENES", {name: (60, 40, 30, 5.0) for name in SCENES})
    return {(case.input, case.stage): case for case in splat_scenes.cases()}


def test_every_scene_is_drawn_both_ways_and_the_large_one_whole(small_cases):
    whole = [splat_scenes.stage_name(p, d) for d in (3, 32) for p in
             (splat.FORWARD, splat.BACKWARD, splat.BOTH)]  # fmt: skip
    wanted = {(name, stage) for name in SCENES for stage in (DRAW, splat.COMPOSITE_BACKWARD)}
    assert set(small_cases) == wanted | {(LARGE, stage) for stage in whole}


def test_arms_agree_with_float64(small_cases):
    arms = load_family("splat_scenes").arms
    for case in small_cases.values():
        wanted = splat_scenes.expected(case)
        for arm in ("pyext", "eager"):
            for got, want in zip(arms[arm].build(case)(), wanted, strict=True):
                assert want.dtype != torch.float32
                assert (got - want).norm() <= 1e-4 * want.norm(), (case.stage, arm)


def test_the_garden_looks_at_the_table():
    scene = garden(200, 64, 48)
    view, focus = scene.viewmats[0], scene.Ks[0]
    assert torch.allclose(view[:3, :3] @ view[:3, :3].T, torch.eye(3), atol=1e-6)
    middle = focus @ view[:3, 3]  # the origin is the middle of the table
    assert torch.allclose(middle[:2] / middle[2], torch.tensor([32.0, 24.0]), atol=1e-4)
    assert middle[2] > 0


def test_a_garden_needs_a_size():
    with pytest.raises(ValueError, match="height must be at least 1, got 0"):
        garden(10, 5, 0)


def row(stage, threads, seconds):
    timing = Timing(median=seconds, lower=seconds, upper=seconds, runs=3)
    return Row(LARGE, stage, "pyext", threads, Work(1, 1), timing=timing)


def test_claims_read_the_rows(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    rows = [row("forward, 3 channels", 1, 0.05), row("forward + backward, 3 channels", 1, 0.1),
            row("forward + backward, 3 channels", 2, 0.05),
            row("forward + backward, 32 channels", 1, 0.4)]  # fmt: skip
    scaling, channels, forward, backward = splat_scenes.claims(rows)[-4:]
    assert scaling.measured == pytest.approx(2) and scaling.held
    assert channels.measured == pytest.approx(4) and channels.held is False
    assert forward.measured == pytest.approx(1.031 / 0.05) and forward.held is False
    assert backward.held is None


def test_claims_without_rows_stay_open():
    claims = splat_scenes.claims([])
    assert len(claims) == 2 * len(SCENES) + 4
    assert all(claim.held is None for claim in claims)
