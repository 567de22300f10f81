"""Readers of photographs: a scene rendered through the cameras they give is the photograph."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pyext_plugins.splat_fit.cameras import Camera, intrinsics, render
from pyext_plugins.splat_fit.dataset import Options, load_dataset

from pyext.errors import UserError
from tests.plugins.photographs import (
    CX,
    CY,
    FX,
    FY,
    HEIGHT,
    WIDTH,
    frames,
    make_cameras,
    make_scene,
    opengl_pose,
    write_colmap,
    write_pictures,
    write_transforms,
)

ALL = Options(test_every=0)


def assert_cameras_took_the_photographs(dataset, views=6):
    """The photographs are of one scene; only the right cameras show it as they do."""
    photographs = [*dataset.train, *dataset.test]
    assert len(photographs) == views
    for photograph in photographs:
        picture, _ = render(make_scene(), photograph.camera, dataset.background)
        # Eight bits, and poses that went through text or a quaternion.
        assert (picture.clamp(0, 1) - photograph.colors()).abs().max() < 0.01, photograph.name


def test_transforms(tmp_path):
    write_transforms(tmp_path, make_cameras())
    dataset = load_dataset(tmp_path, Options(test_every=4))
    assert_cameras_took_the_photographs(dataset)
    assert [photograph.name for photograph in dataset.test] == [
        "images/view_0.png",
        "images/view_4.png",
    ]
    assert len(dataset.points) == 0


@pytest.mark.parametrize("binary", [False, True])
def test_colmap(tmp_path, binary):
    write_colmap(tmp_path, make_cameras(), binary=binary)
    dataset = load_dataset(tmp_path, Options(test_every=4))
    assert_cameras_took_the_photographs(dataset)
    assert [photograph.name for photograph in dataset.test] == ["view_0.png", "view_4.png"]
    assert dataset.points.tolist() == [[0.25, -0.5, 1.0], [0.0, 1.5, -2.0]]
    assert torch.allclose(dataset.colors, torch.tensor([[1.0, 0.0, 0.2], [0.0, 0.4, 1.0]]))


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(
    ("model", "parameters"),
    [("SIMPLE_PINHOLE", (FX, CX, CY)), ("SIMPLE_RADIAL", (FX, CX, CY, 0.0))],
)
def test_colmap_models_of_one_focal_length(tmp_path, model, parameters, binary):
    write_colmap(tmp_path, make_cameras(1), model, parameters, binary)
    (photograph,) = load_dataset(tmp_path, ALL).train
    assert torch.equal(photograph.camera.K, intrinsics(FX, FX, CX, CY))


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(
    ("model", "parameters"),
    [("SIMPLE_RADIAL", (FX, CX, CY, 0.01)), ("OPENCV", (FX, FY, CX, CY, 0, 0, 0, 0))],
)
def test_colmap_models_that_are_no_pinhole(tmp_path, model, parameters, binary):
    write_colmap(tmp_path, make_cameras(1), model, parameters, binary)
    with pytest.raises(UserError, match=f"a camera is {model} with .*, expected PINHOLE, "):
        load_dataset(tmp_path, ALL)


@pytest.mark.parametrize("place", ["sparse", "."])
def test_colmap_in_other_places_and_without_points(tmp_path, place):
    write_colmap(tmp_path, make_cameras(2))
    (tmp_path / "sparse/0/points3D.txt").unlink()
    for file in (tmp_path / "sparse/0").iterdir():
        shutil.move(file, tmp_path / place / file.name)
    dataset = load_dataset(tmp_path, ALL)
    assert_cameras_took_the_photographs(dataset, 2)
    assert dataset.points.shape == dataset.colors.shape == (0, 3)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_colmap_files_that_are_cut_off(tmp_path, name):
    write_colmap(tmp_path, make_cameras(2), binary=True)
    path = tmp_path / "sparse/0" / f"{name}.bin"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="DATA: .*sparse/0 cannot be read: "):
        load_dataset(tmp_path, ALL)


def test_arrays(tmp_path):
    cameras = [
        Camera(camera.viewmat, intrinsics(FX, FX, WIDTH / 2, HEIGHT / 2), WIDTH, HEIGHT)
        for camera in make_cameras()
    ]
    black = torch.zeros(3)
    images = torch.stack([render(make_scene(), camera, black)[0] for camera in cameras])
    poses = np.array([opengl_pose(camera) for camera in cameras], np.float32)
    path = tmp_path / "views.npz"
    np.savez(path, images=images.numpy(), poses=poses, focal=np.float64(FX))
    dataset = load_dataset(path, Options(test_every=4))
    assert_cameras_took_the_photographs(dataset)
    assert [photograph.name for photograph in dataset.test] == ["view 0", "view 4"]


def test_a_split_in_two_files_is_kept(tmp_path):
    cameras = make_cameras()
    for name, part in (("train", cameras[:4]), ("test", cameras[4:])):
        names = write_pictures(tmp_path / name, part)
        stems = [name.removesuffix(".png") for name in names]  # as NeRF's own files have it
        content = {"camera_angle_x": 2 * math.atan(WIDTH / 2 / FX)}
        content["frames"] = frames(part, stems, name)
        (tmp_path / f"transforms_{name}.json").write_text(json.dumps(content))
    dataset = load_dataset(tmp_path, Options(test_every=2))
    assert len(dataset.train) == 4 and len(dataset.test) == 2
    expected = intrinsics(FX, FX, WIDTH / 2, HEIGHT / 2)
    assert torch.allclose(dataset.train[0].camera.K, expected, rtol=1e-6)


def test_a_frame_goes_before_the_whole(tmp_path):
    cameras = make_cameras(2)
    write_transforms(tmp_path, cameras)
    content = json.loads((tmp_path / "transforms.json").read_text())
    content["frames"][1]["fl_x"] = 77.0
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    first, second = load_dataset(tmp_path, ALL).train
    assert first.camera.K[0, 0] == FX and second.camera.K[0, 0] == 77


def test_smaller_photographs_show_the_same(tmp_path):
    write_transforms(tmp_path, make_cameras(2))
    (photograph, _) = load_dataset(tmp_path, Options(resolution=20, test_every=0)).train
    assert photograph.pixels.shape == (15, 20, 3)
    picture, _ = render(make_scene(), photograph.camera, torch.zeros(3))
    # Another filter made the smaller photograph: alike on average, not in each pixel.
    assert (picture.clamp(0, 1) - photograph.colors()).abs().mean() < 0.03
    assert photograph.camera.K[1, 2] == CY / 2


@pytest.mark.parametrize(("background", "level"), [("black", 0), ("white", 255)])
def test_transparency_is_put_on_the_background(tmp_path, background, level):
    write_transforms(tmp_path, make_cameras(1))
    image = Image.new("RGBA", (WIDTH, HEIGHT), (9, 9, 9, 0))
    image.save(tmp_path / "images/view_0.png")
    dataset = load_dataset(tmp_path, Options(background=background, test_every=0))
    assert dataset.train[0].pixels.eq(level).all()
    assert dataset.background.mul(255).eq(level).all()


def test_other_data_has_another_digest(tmp_path):
    write_transforms(tmp_path, make_cameras(3))
    first = load_dataset(tmp_path, ALL).digest
    assert first == load_dataset(tmp_path, ALL).digest
    assert first != load_dataset(tmp_path, Options(background="white", test_every=0)).digest
    write_transforms(tmp_path, make_cameras(3), cx=CX + 1)
    assert first != load_dataset(tmp_path, ALL).digest


SKEWED = [[1.0, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k1": 0.1}, "frame 0: its camera distorts .k1 = 0.1.; undistort it first"),
        ({"camera_model": "OPENCV_FISHEYE"}, "frame 0: its camera is a fisheye"),
        ({"w": 41}, "view_0.png has 40 x 30 pixels, its camera 41 x 30"),
        ({"fl_x": 0}, "frame 0: expected focal lengths above zero, got 0.0 and 48.0"),
        ({"fl_x": "wide"}, "frame 0: could not convert string"),
        ({"frames": None}, "transforms.json has no list of frames"),
        ({"frames": []}, "expected photographs to train on, there are none"),
        ({"frames": [{"file_path": "no.png"}]}, "frame 0: there is no picture .*no.png"),
        ({"frames": [{"file_path": "images/view_0.png"}]}, "frame 0 has no transform_matrix"),
        (
            {"frames": [{"file_path": "images/view_0.png", "transform_matrix": SKEWED}]},
            "frame 0: transform_matrix: expected a rotation and a place",
        ),
    ],
)
def test_bad_transforms(tmp_path, changes, message):
    write_transforms(tmp_path, make_cameras(1), **changes)
    with pytest.raises(UserError, match=f"DATA: .*{message}"):
        load_dataset(tmp_path, ALL)


def test_transforms_that_are_no_json(tmp_path):
    (tmp_path / "transforms.json").write_text('{"frames": [')
    with pytest.raises(UserError, match="DATA: .*transforms.json cannot be read: "):
        load_dataset(tmp_path, ALL)


def test_bad_arrays(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((2, 12, 12, 3)), poses=np.zeros((3, 4, 4)), focal=1.0)
    with pytest.raises(UserError, match=r"got \[2, 12, 12, 3\], \[3, 4, 4\] and \[\]"):
        load_dataset(path, ALL)
    np.savez(path, images=np.zeros((2, 12, 12, 3)), focal=1.0)
    with pytest.raises(UserError, match="has no array poses"):
        load_dataset(path, ALL)
    np.savez(path, images=np.array([{}]), poses=np.zeros((3, 4, 4)), focal=1.0)
    with pytest.raises(UserError, match="cannot be read: .*pickle"):
        load_dataset(path, ALL)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="cannot be read: "):
        load_dataset(path, ALL)


def test_nothing_that_is_known(tmp_path):
    with pytest.raises(UserError, match="has neither transforms.json, transforms_train.json nor"):
        load_dataset(tmp_path, ALL)
    with pytest.raises(UserError, match="expected a folder or a .npz file, .* is neither"):
        load_dataset(tmp_path / "none", ALL)
    with pytest.raises(UserError, match="expected a folder or a .npz file, .* is neither"):
        load_dataset(tmp_path / "none.npz", ALL)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resolution": 10}, "--resolution: expected 11 to 16384, got 10"),
        ({"background": "blue"}, "--background: expected black or white, got 'blue'"),
        ({"test_every": 1}, "--test-every: expected 0 for none or at least 2, got 1"),
    ],
)
def test_bad_options(values, message):
    with pytest.raises(UserError, match=message):
        Options(**values)
