"""The fit itself: it gets better, it repeats to the bit, it goes on where it stopped."""

import numpy as np
import pytest
import torch
from PIL import Image
from pyext_plugins import checkpoint
from pyext_plugins.picture import MAX_ROW, MAX_SIDE, load_picture, psnr, save_row
from pyext_plugins.splat_fit import demo as demo_module
from pyext_plugins.splat_fit.fitting import Fit, Settings, run
from pyext_plugins.splat_fit.outputs import write_outputs
from pyext_plugins.splat_fit.scene import Camera, render, start

from pyext.errors import UserError

SMALL = Settings(gaussians=200, steps=30)


def picture(width=64, height=48):
    """Smooth colours with an edge through them."""
    x = torch.linspace(0, 1, width).expand(height, width)
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    return torch.stack([x, y, (x > 0.5).float()], -1).contiguous()


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def finished(settings=SMALL, target=None):
    fit = Fit(picture() if target is None else target, settings)
    run(fit)
    return fit


def test_it_gets_better():
    fit = Fit(picture(), SMALL)
    before = fit.psnr()
    seen = []
    run(fit, seen.append)
    assert len(seen) == fit.step == SMALL.steps and fit.done
    assert fit.psnr() > before + 8
    assert sorted(fit.snapshots) == [0, 1, 7]


def test_the_same_bits_again():
    first, second = finished(), finished()
    for name, value in first.parameters.items():
        assert torch.equal(value, second.parameters[name]), name


def test_another_seed_is_another_fit():
    other = finished(Settings(gaussians=200, steps=30, seed=1))
    assert not torch.equal(finished().parameters["means"], other.parameters["means"])


@pytest.mark.parametrize("stop", [1, 13, 30])
def test_resuming_gives_the_bits_of_an_uninterrupted_fit(tmp_path, stop):
    whole, part = finished(), Fit(picture(), SMALL)
    run(part, should_stop=lambda: part.step >= stop)
    assert part.step == stop
    checkpoint.save(part, tmp_path)
    resumed = Fit(picture(), SMALL)
    assert checkpoint.resume(resumed, tmp_path)
    assert resumed.step == stop and resumed.seconds == part.seconds
    run(resumed)
    for name, value in whole.parameters.items():
        assert torch.equal(value, resumed.parameters[name]), name
    assert {k: v.tolist() for k, v in resumed.snapshots.items()} == {
        k: v.tolist() for k, v in whole.snapshots.items()
    }


def test_without_a_checkpoint_nothing_is_resumed(tmp_path):
    assert not checkpoint.resume(Fit(picture(), SMALL), tmp_path)


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        (picture(), Settings(gaussians=100, steps=30), "holds a fit of gaussians 200, steps 30"),
        (
            picture().flip(0),
            SMALL,
            "holds a fit of picture [0-9a-f]{12}, this is picture [0-9a-f]{12}; ",
        ),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, target, settings, message):
    checkpoint.save(finished(), tmp_path)
    with pytest.raises(UserError, match=message):
        checkpoint.resume(Fit(target.contiguous(), settings), tmp_path)


def test_a_checkpoint_of_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "version", lambda name: "0.0.1")
    checkpoint.save(Fit(picture(), SMALL), tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"holds a fit of pyext-plugins 0\.0\.1, this is pyext-"):
        checkpoint.resume(Fit(picture(), SMALL), tmp_path)


def test_a_checkpoint_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / checkpoint.NAME).write_bytes(b"\x80\x04 not tensors")
    with pytest.raises(UserError, match=r"--output: .*checkpoint.safetensors cannot be read"):
        checkpoint.resume(Fit(picture(), SMALL), tmp_path)


def read_ply(path):
    """The table of a binary little-endian file of float properties, by name."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    (count,) = [int(line.split()[2]) for line in lines if line.startswith("element vertex")]
    names = [line.split()[2] for line in lines if line.startswith("property float")]
    table = np.frombuffer(body, "<f4").reshape(count, len(names))
    return dict(zip(names, torch.from_numpy(table.copy()).unbind(-1), strict=True))


def test_the_ply_alone_gives_the_picture(tmp_path):
    fit = finished()
    # A colour below zero is black to viewers, not a hole in what lies behind.
    with torch.no_grad():
        fit.parameters["dc"][::5] = -3.0
    write_outputs(fit, tmp_path)
    ply = read_ply(tmp_path / "splats.ply")
    assert len(ply["x"]) == SMALL.gaussians

    def columns(*names):
        return torch.stack([ply[name] for name in names], -1)

    # From the layout's definition, by its own path: not through `scene.render`.
    from pyext.ops.splat import rasterization

    focal = 64.0
    colors, _, _ = rasterization(
        columns("x", "y", "z"),
        columns("rot_0", "rot_1", "rot_2", "rot_3"),
        columns("scale_0", "scale_1", "scale_2").exp(),
        ply["opacity"].sigmoid(),
        (0.5 + 0.28209479177387814 * columns("f_dc_0", "f_dc_1", "f_dc_2")).clamp(min=0),
        torch.eye(4)[None],
        torch.tensor([[[focal, 0, 32], [0, focal, 24], [0, 0, 1]]]),
        64,
        48,
    )
    shown = pixels(tmp_path / "fit.png").astype(float)
    again = (colors[0].clamp(0, 1) * 255).round().numpy()
    assert np.abs(shown - again).max() <= 1


def test_the_outputs_tell_what_was_measured(tmp_path):
    fit = finished()
    report = write_outputs(fit, tmp_path)
    shown = torch.from_numpy(pixels(tmp_path / "fit.png").copy()) / 255
    assert abs(psnr(shown, fit.target) - report.facts["psnr"]) < 1e-6
    assert report.rows[-1] == {"step": 30, "PSNR (dB)": round(report.facts["psnr"], 2)}
    assert pixels(tmp_path / "strip.png").shape == (48, 4 * 64 + 3 * 8, 3)
    assert all(path.exists() for path in report.pictures.values())


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2)])
def test_pictures_of_a_few_pixels(tmp_path, size):
    fit = finished(Settings(gaussians=3, steps=2), torch.rand(*size, 3))
    assert all(value.isfinite().all() for value in fit.parameters.values())
    write_outputs(fit, tmp_path)


def test_a_picture_of_one_colour_spreads_evenly():
    means = start(torch.full((40, 60, 3), 0.5), 4000, seed=0)["means"]
    x = means[:, 0] / means[:, 2]
    assert abs(float((x < 0).float().mean()) - 0.5) < 0.04


def test_black_is_what_lies_behind():
    parameters = start(torch.ones(8, 8, 3), 1, seed=0)
    parameters["logit_opacities"].fill_(-20.0)
    assert torch.equal(render(parameters, Camera(8, 8)), torch.zeros(8, 8, 3))


def test_large_pictures_are_scaled_down(tmp_path):
    Image.new("RGB", (3 * MAX_SIDE, 90), (255, 0, 0)).save(tmp_path / "wide.png")
    assert load_picture(tmp_path / "wide.png").shape == (30, MAX_SIDE, 3)


def test_transparency_and_orientation(tmp_path):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 255, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by the camera: the file's right is the picture's bottom
    image.save(tmp_path / "turned.png", exif=exif)
    expected = torch.tensor([[[0.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])
    assert torch.equal(load_picture(tmp_path / "turned.png"), expected)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    grey = np.array([[0, 257 * 100, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    expected = torch.tensor([0, 100, 255]).float()[None, :, None].expand(1, 3, 3) / 255
    assert torch.equal(load_picture(tmp_path / "grey.png"), expected)


def test_rows_are_side_by_side_and_scaled_down_where_too_long(tmp_path):
    red, blue = torch.zeros(2, 600, 1000, 3, dtype=torch.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    save_row(tmp_path / "row.png", [red, blue])
    row = pixels(tmp_path / "row.png")
    assert row.shape[1] == MAX_ROW and abs(row.shape[0] - 600 * MAX_ROW / 2008) <= 1
    assert row[9, 9].tolist() == [255, 0, 0] and row[9, -9].tolist() == [0, 0, 255]


def test_the_demo_reports_claims_and_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module, "Settings", lambda: SMALL)
    report = demo_module.demo(tmp_path)
    assert [claim.wanted for claim in report.claims] == [30, 90]
    assert report.claims[0].held is False and report.claims[0].measured < 30
    assert pixels(tmp_path / "demo.png").shape[1] == MAX_ROW
    assert all(path.exists() for path in report.pictures.values())
    report.save(tmp_path / "report.json")
