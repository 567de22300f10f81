import math

import numpy as np
import pytest
import torch
from splat_orbit.demo import demo, torus
from splat_orbit.orbit import load_points, orbit, save_gif


def test_half_a_turn_shows_the_other_side():
    points, colors = torus(500)
    turned = points * torch.tensor([-1.0, 1.0, -1.0])
    front, back = orbit(points, colors, torch.tensor([0.0, math.pi]))
    assert (front - back).abs().mean() > 0.01
    assert (back - orbit(turned, colors, torch.zeros(1))[0]).abs().mean() < 1e-3


@pytest.mark.parametrize("shape", [(5,), (5, 4), (0, 3)])
def test_other_shapes_are_named(tmp_path, shape):
    path = tmp_path / "points.npy"
    np.save(path, np.zeros(shape))
    with pytest.raises(ValueError, match=r"POINTS: expected shape \[N, 3\] or \[N, 6\], got"):
        load_points(path)


@pytest.mark.parametrize("content", [np.full((5, 3), np.nan), np.full((5, 3), "a")])
def test_what_is_no_finite_number_is_named(tmp_path, content):
    path = tmp_path / "points.npy"
    np.save(path, content)
    with pytest.raises(ValueError, match="POINTS: expected finite numbers, got others in "):
        load_points(path)


def test_an_archive_is_refused(tmp_path):
    path = tmp_path / "points.npz"
    np.savez(path, a=np.zeros((5, 3)), b=np.zeros((5, 3)))
    with pytest.raises(ValueError, match="is not a .npy file: it holds several arrays"):
        load_points(path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "none" / "orbit.gif"
    with pytest.raises(ValueError, match="--output: cannot write .*orbit.gif: No such file or dir"):
        save_gif(path, torch.zeros(2, 4, 4, 3))


def test_demo_holds(tmp_path):
    report = demo(tmp_path)
    assert all(claim.held for claim in report.claims)
    assert (tmp_path / "orbit.gif").read_bytes().startswith(b"GIF89a")
