"""`pyext splat-fit render`: scene files as pictures and films."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pyext_plugins.splat_fit.cameras import look_at
from pyext_plugins.splat_fit.viewpoint import bounds, default_eye, turntable

from pyext import scene as scene_files
from pyext.cli import main
from pyext.errors import UserError
from pyext.scene import Scene


def spots(places, colors, size=0.2):
    """Opaque round Gaussians."""
    n = len(places)
    return Scene(
        means=torch.tensor(places),
        scales=torch.full((n, 3), size).log(),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(n, 1),
        opacities=torch.full((n,), 6.0),
        sh0=(torch.tensor(colors)[:, None] - 0.5) / 0.28209479177387814,
        shN=torch.zeros(n, 0, 3),
    )


@pytest.fixture
def scene(tmp_path):
    """Red to the right, green above (y points down), as seen along z."""
    path = tmp_path / "scene.ply"
    places = [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]
    scene_files.save(spots(places, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), path)
    return path


@pytest.fixture
def render(monkeypatch, capfd):
    """Run the command in this process: exit code, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pyext", "splat-fit", "render", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, end.value.code, out, err)

    return call


VIEW = ("--eye", "0,0,-4", "--look-at", "0,0,0", "--width", 60, "--height", 40)


def brightest(picture, channel):
    """Row and column."""
    levels = np.asarray(picture.convert("RGB"))[..., channel].astype(float)
    return [float((levels.sum(axis) * np.arange(len(levels.sum(axis)))).sum() / levels.sum())
            for axis in (1, 0)]  # fmt: skip


@pytest.mark.parametrize("suffix", [".ply", ".splat"])
def test_a_picture_from_a_stated_place(render, scene, tmp_path, suffix):
    path = tmp_path / f"again{suffix}"
    scene_files.save(scene_files.load(scene), path)
    done = render(path, "-o", tmp_path / "a.png", "--fov", 90, *VIEW)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (60, 40)
        # A place 1 beside the middle, 4 ahead, is a quarter of the focal length of 30 beside it.
        assert brightest(picture, 0) == pytest.approx([19.5, 29.5 + 7.5], abs=0.3)
        assert brightest(picture, 1) == pytest.approx([19.5 - 7.5, 29.5], abs=0.3)


def test_up_turns_the_picture(render, scene, tmp_path):
    assert render(scene, "-o", tmp_path / "a.png", "--up", "0,1,0", *VIEW).returncode == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert brightest(picture, 1)[0] > 25


def test_the_background(render, scene, tmp_path):
    assert render(scene, "-o", tmp_path / "a.png", "--background", "white", *VIEW).returncode == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_film_goes_once_around(render, scene, tmp_path, suffix):
    film = tmp_path / f"film{suffix}"
    done = render(scene, "-o", film, "--turntable", 4, *VIEW)
    assert done.returncode == 0, done.stderr
    with Image.open(film) as opened:
        assert opened.n_frames == 4 and opened.size == (60, 40)
        columns = []
        for frame in range(4):
            opened.seek(frame)
            columns.append(brightest(opened, 0)[1])
    # Right, behind or before the middle, left, before or behind it.
    assert columns[0] > 35 and columns[2] < 25
    assert all(abs(column - 29.5) < 1.5 for column in (columns[1], columns[3]))


def test_without_a_stated_place_the_scene_is_in_view(render, scene, tmp_path):
    done = render(scene, "-o", tmp_path / "a.png", "--width", 60, "--height", 60)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a.png") as picture:
        levels = np.asarray(picture).astype(int)
    for channel in (0, 1):
        assert levels[..., channel].max() > 200
        assert levels[[0, -1], :, channel].max() < 20 and levels[:, [0, -1], channel].max() < 20


def test_strays_and_what_is_faint_do_not_move_the_view():
    places = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    cloud = spots(places.tolist(), [[1.0, 1.0, 1.0]] * 200)
    centre, radius = bounds(cloud)
    n = 520
    means = torch.cat([places, torch.full((20, 3), 1e4), torch.full((300, 3), -50.0)])
    opacities = torch.cat([torch.full((220,), 6.0), torch.full((300,), -6.0)])
    more = Scene(
        means, torch.full((n, 3), 0.2).log(), torch.ones(n, 4), opacities, torch.zeros(n, 1, 3),
        torch.zeros(n, 0, 3),
    )  # fmt: skip
    other, other_radius = bounds(more)
    assert (other - centre).norm() < 0.5 and other_radius < 1.3 * radius


def test_a_camera_looks_where_it_is_told():
    eye, target = torch.tensor([3.0, -1.0, 2.0]), torch.tensor([0.5, 0.5, 0.0])
    viewmat = look_at(eye, target, torch.tensor([0.0, 0.0, 2.0]))
    rotation = viewmat[:3, :3]
    assert torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-6)
    assert torch.linalg.det(rotation) == pytest.approx(1, abs=1e-6)
    seen = rotation @ target + viewmat[:3, 3]
    assert torch.allclose(seen, torch.tensor([0, 0, float((eye - target).norm())]), atol=1e-5)
    above = rotation @ (target + torch.tensor([0.0, 0.0, 0.1])) + viewmat[:3, 3]
    assert above[1] < 0 and above[0].abs() < 1e-6


def test_the_default_eye_takes_in_the_ball():
    centre, up = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, -1.0, 0.0])
    eye = default_eye(centre, 2.0, up, 60.0)
    assert float((eye - centre).norm()) == pytest.approx(2 / math.sin(math.radians(30)), rel=1e-5)
    assert eye[1] < centre[1]


def test_a_turntable_keeps_height_and_distance():
    eye, target, up = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0]), torch.eye(3)[2]
    places = torch.stack(list(turntable(eye, target, 5 * up, 8)))
    assert torch.allclose(places[0], eye, atol=1e-6)
    assert torch.allclose(places[:, 2], torch.full((8,), 2.0), atol=1e-5)
    distances = (places - target).norm(dim=1)
    assert torch.allclose(distances, distances[:1].expand(8), atol=1e-5)
    assert torch.allclose(places.mean(0)[:2], target[:2], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "a.mp4"), "--output: expected a picture, .png, .jpg, .webp, got a.mp4"),
        (("-o", "a.png", "--turntable", 3), "--output: expected a film, .gif, .webp, got a.png"),
        (("-o", "none/a.png"), "--output: there is no folder none"),
        (("-o", "a.png", "--width", 0), "--width: expected 1 to 8192, got 0"),
        (("-o", "a.png", "--fov", 180), "--fov: expected 1 to 170, got 180"),
        (("-o", "a.gif", "--turntable", -1), "--turntable: expected 0 to 1000, got -1"),
        (("-o", "a.png", "--eye", "1,2"), "--eye: expected three numbers like 0,-1,0, got '1,2'"),
        (("-o", "a.png", "--eye", "1,2,nan"), "--eye: expected three numbers"),
        (("-o", "a.png", "--up", "0,0,0"), "--up: expected a direction, got 0,0,0"),
        (("-o", "a.png", "--background", "red"), "--background: expected black or white, got"),
        (("-o", "a.png", "--eye", "1,1,1", "--look-at", "1,1,1"), "--look-at: expected a point"),
        (("-o", "a.png", "--eye", "0,1,0", "--look-at", "0,0,0"), "--look-at: expected a point"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    render, scene, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    done = render(scene, *options)
    assert done.returncode == 2
    assert done.stderr.startswith(f"pyext: {message}"), done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["scene.ply"]


def test_a_scene_without_gaussians(render, tmp_path):
    (tmp_path / "none.splat").write_bytes(b"")
    done = render(tmp_path / "none.splat", "-o", tmp_path / "a.png")
    assert done.returncode == 2
    assert done.stderr == "pyext: SCENE: expected Gaussians that can be seen, there are none\n"
    with pytest.raises(UserError):
        bounds(scene_files.load(tmp_path / "none.splat"))
