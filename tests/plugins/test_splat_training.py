"""Training from photographs: it gets better, repeats to the bit, goes on where it stopped."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from pyext_plugins import checkpoint
from pyext_plugins.splat_fit.cameras import Camera, intrinsics, look_at
from pyext_plugins.splat_fit.cloud import neighbour_distance, seen_cube, start
from pyext_plugins.splat_fit.dataset import Options, load_dataset
from pyext_plugins.splat_fit.fitting import run
from pyext_plugins.splat_fit.ssim import ssim
from pyext_plugins.splat_fit.training import Training, TrainingSettings
from pyext_plugins.splat_fit.training_outputs import write_outputs

from pyext import scene as scene_files
from pyext.cli import main
from pyext.errors import UserError
from tests.plugins.photographs import make_cameras, write_colmap, write_transforms

# Densification happens at step 100, between the steps 30 and 150 (or 250 with mcmc).
SMALL = TrainingSettings(steps=300, gaussians=150, sh_degree=1)
MCMC = replace(SMALL, strategy="mcmc", gaussians=160)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    write_transforms(folder, make_cameras(8))
    return load_dataset(folder, Options(test_every=4))


def trained(dataset, settings, until):
    training = Training(dataset, settings)
    run(training, should_stop=lambda: training.step >= until)
    assert training.step == until
    return training


def assert_same(one, other):
    for name, value in one.parameters.items():
        assert torch.equal(value, other.parameters[name]), name


@pytest.mark.parametrize("settings", [SMALL, MCMC])
def test_held_out_photographs_get_better(dataset, tmp_path, settings):
    before = write_outputs(Training(dataset, settings), tmp_path).facts
    after = write_outputs(trained(dataset, settings, 300), tmp_path).facts
    assert after["measured on"] == "held-out"
    assert after["psnr"] > before["psnr"] + 4 and after["ssim"] > before["ssim"] + 0.1


def test_densification_changes_the_number_of_gaussians(dataset):
    numbers = []
    training = Training(dataset, SMALL)
    run(training, lambda psnr: numbers.append(len(training.scene)), lambda: training.step >= 102)
    assert set(numbers[:99]) == {SMALL.gaussians} and numbers[-1] != SMALL.gaussians


def test_mcmc_moves_those_that_have_faded(dataset):
    training = trained(dataset, MCMC, 100)
    with torch.no_grad():
        training.parameters["opacities"][:20] = -9
    before = training.scene.means.clone()
    training.advance()
    assert (training.scene.opacities.sigmoid() >= 0.005).all()
    moved = (training.scene.means - before).norm(dim=1)
    assert moved[:20].median() > 10 * moved[20:].median()


def test_mcmc_stays_within_its_number(dataset):
    start_with = replace(MCMC, gaussians=100)
    assert len(trained(dataset, start_with, 260).scene) <= 100


@pytest.mark.parametrize("settings", [SMALL, MCMC])
@pytest.mark.parametrize("stop", [0, 90, 110])
def test_resuming_gives_the_bits_of_an_uninterrupted_training(dataset, tmp_path, settings, stop):
    whole = trained(dataset, settings, 130)
    checkpoint.save(trained(dataset, settings, stop), tmp_path)
    torch.manual_seed(stop)  # chance elsewhere in the program does not matter
    resumed = Training(dataset, settings)
    assert checkpoint.resume(resumed, tmp_path)
    assert resumed.step == stop
    run(resumed, should_stop=lambda: resumed.step >= 130)
    assert_same(whole, resumed)
    assert whole.psnr_seen == resumed.psnr_seen


def test_another_seed_is_another_training(dataset):
    other = trained(dataset, replace(SMALL, seed=1), 3)
    assert not torch.equal(trained(dataset, SMALL, 3).scene.means, other.scene.means)


def test_a_checkpoint_of_other_data_is_refused(dataset, tmp_path):
    checkpoint.save(Training(dataset, SMALL), tmp_path)
    other = replace(dataset, background=torch.ones(3))
    with pytest.raises(UserError, match="holds a fit of data [0-9a-f]{12}, this is data "):
        checkpoint.resume(Training(other, SMALL), tmp_path)


def test_known_points_are_where_it_starts(tmp_path):
    write_colmap(tmp_path, make_cameras(2))
    dataset = load_dataset(tmp_path, Options(test_every=0))
    training = Training(dataset, SMALL)
    assert torch.equal(training.scene.means, dataset.points)
    colors = 0.5 + 0.28209479177387814 * training.scene.sh0[:, 0]
    assert torch.allclose(colors, dataset.colors, atol=1e-6)


def test_degrees_come_one_after_the_other(dataset):
    training = trained(dataset, SMALL, 20)
    assert not training.scene.shN.any()
    training.step = 1000
    training.advance()
    assert training.scene.shN.any()


def test_the_file_is_the_scene(dataset, tmp_path):
    training = trained(dataset, SMALL, 5)
    report = write_outputs(training, tmp_path)
    saved = scene_files.load(tmp_path / "scene.ply")
    for name, value in training.parameters.items():
        assert torch.equal(getattr(saved, name), value), name
    assert [row["photograph"] for row in report.rows] == [
        "images/view_0.png",
        "images/view_4.png",
        "mean",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "--steps: expected 1 to 1000000, got 0"),
        ({"gaussians": 0}, "--gaussians: expected 1 to 10000000, got 0"),
        ({"sh_degree": 5}, "--sh-degree: expected 0 to 4, got 5"),
        ({"seed": -1}, "--seed: expected 0 to "),
        ({"strategy": "best"}, "--strategy: expected default or mcmc, got 'best'"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(UserError, match=message):
        TrainingSettings(**values)


# The parts.


def test_ssim_is_that_of_its_definition():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 13, 12, 3, generator=generator, dtype=torch.float64)
    window = torch.tensor([math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)])
    weights = torch.outer(window, window).double()
    weights = (weights / weights.sum())[..., None]
    values = []
    for y in range(3):
        for x in range(2):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (weights * p).sum((0, 1)), (weights * q).sum((0, 1))
            vp, vq = (weights * (p - mp) ** 2).sum((0, 1)), (weights * (q - mq) ** 2).sum((0, 1))
            cov = (weights * (p - mp) * (q - mq)).sum((0, 1))
            likeness = (2 * mp * mq + 0.01**2) * (2 * cov + 0.03**2)
            values.append(likeness / ((mp**2 + mq**2 + 0.01**2) * (vp + vq + 0.03**2)))
    expected = torch.stack(values).mean()
    assert abs(float(ssim(a, b) - expected)) < 1e-7  # the window above is of float32
    assert float(ssim(a, a)) == pytest.approx(1, abs=1e-12)
    assert torch.autograd.gradcheck(ssim, (a.requires_grad_(), b))


def test_cameras_around_a_scene_see_a_cube():
    centre, up = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, 1.0])
    eyes = torch.tensor([[4.0, 0, 0], [0, 4, 0], [-4, 0, 1], [0, -4, 2]]) + centre
    cameras = [Camera(look_at(eye, centre, up), intrinsics(50, 50, 25, 25), 50, 50) for eye in eyes]
    found, half = seen_cube(cameras)
    assert torch.allclose(found, centre, atol=1e-4)
    distances = (eyes - centre).norm(dim=1)
    assert half == pytest.approx(float(distances.median()) * 0.5, rel=1e-5)


def test_cameras_that_look_the_same_way_see_what_is_before_them():
    eyes = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    ahead, up = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    cameras = [
        Camera(look_at(eye, eye + ahead, up), intrinsics(50, 50, 25, 25), 50, 50) for eye in eyes
    ]
    centre, half = seen_cube(cameras)
    assert torch.allclose(centre, torch.tensor([1.0, 1.1, 0.0]), atol=1e-5)
    assert half == pytest.approx(0.55, rel=1e-5)


def test_sizes_follow_the_gaps():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [50, 0, 0]])
    expected = math.sqrt((1 + 4 + 9) / 3)
    assert float(neighbour_distance(points)[0]) == pytest.approx(expected)
    assert neighbour_distance(points[:1]).tolist() == [1.0]
    many = torch.randn(3000, 3, generator=torch.Generator().manual_seed(0)) + 10
    many[7] *= 100  # a stray
    distances = torch.cdist(many.double(), many.double()).sort(1).values[:, 1:4]
    expected = distances.square().mean(1).sqrt().float()
    assert torch.allclose(neighbour_distance(many), expected, rtol=1e-4)
    same = start(torch.zeros(4, 3), torch.zeros(4, 3), 0)
    assert same.scales.isfinite().all()


# The command.


@pytest.fixture
def command(monkeypatch, capfd):
    """Run it in this process: exit code, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pyext", "splat-fit", "scene", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, end.value.code, out, err)

    return call


def test_the_command_leaves_its_files_and_a_rerun_changes_none(command, tmp_path):
    write_transforms(tmp_path / "data", make_cameras(3))
    out = tmp_path / "out"
    arguments = (tmp_path / "data", "-o", out, "--steps", 5, "--gaussians", 30, "--sh-degree", 2)
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    names = {"scene.ply", "views.png", "report.json", "checkpoint.safetensors"}
    assert {path.name for path in out.iterdir()} == names
    facts = json.loads((out / "report.json").read_text())["facts"]
    assert facts["complete"] and facts["settings"]["sh_degree"] == 2
    before = (out / "scene.ply").read_bytes()
    again = command(*arguments)
    assert again.returncode == 0 and "resuming at step 5 of 5" in again.stderr
    assert (out / "scene.ply").read_bytes() == before
    other = command(*arguments[:-1], 1)
    assert other.returncode == 2 and "sh_degree 2" in other.stderr


def test_bad_data_is_one_line_and_leaves_nothing(command, tmp_path):
    done = command(tmp_path, "-o", tmp_path / "out")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"pyext: DATA: {tmp_path} has neither transforms.json")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
