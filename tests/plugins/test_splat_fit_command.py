"""`pyext splat-fit fit`: bad input, Ctrl-C, kill -9."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from pyext_plugins.picture import save_png

from pyext.cli import main

COMMAND = [sys.executable, "-m", "pyext.cli", "splat-fit", "fit"]
OUTPUTS = {
    *("target.png", "fit.png", "strip.png", "splats.ply", "report.json"),
    "checkpoint.safetensors",
}


@pytest.fixture
def fit(monkeypatch, capfd):
    """Run the command in this process: exit code, stdout, stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pyext", *COMMAND[3:], *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, end.value.code, out, err)

    return run


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "picture.png"
    ramp = torch.linspace(0, 255, 64).to(torch.uint8)
    save_png(path, torch.stack([ramp.expand(48, 64)] * 3, -1).contiguous())
    return path


def test_a_fit_leaves_its_files_and_a_rerun_changes_none(fit, image, tmp_path):
    folder = tmp_path / "new" / "folder"
    arguments = (image, "-o", folder, "--gaussians", 100, "--steps", 20)
    done = fit(*arguments)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == OUTPUTS
    report = json.loads((folder / "report.json").read_text())
    assert report["facts"]["complete"] and report["facts"]["steps taken"] == 20
    before = (folder / "splats.ply").read_bytes()
    again = fit(*arguments)
    assert again.returncode == 0 and "resuming at step 20 of 20" in again.stderr
    assert (folder / "splats.ply").read_bytes() == before


def bad_inputs(tmp_path, image):
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    cut = tmp_path / "cut.png"
    cut.write_bytes(image.read_bytes()[:60])
    empty = tmp_path / "empty.ppm"
    empty.write_bytes(b"P6\n0 0\n255\n")  # a header of zero pixels
    depth = tmp_path / "depth.tif"
    Image.new("F", (4, 4)).save(depth)
    taken = tmp_path / "taken"
    taken.write_text("")
    out = tmp_path / "out"
    return {
        "missing": ((tmp_path / "no.png", "-o", out), "IMAGE: expected a picture file, "),
        "folder": ((tmp_path, "-o", out), "IMAGE: expected a picture file, "),
        "text": ((text, "-o", out), f"IMAGE: expected a picture, {text} is none that Pillow"),
        "cut": ((cut, "-o", out), f"IMAGE: {cut} cannot be read: "),
        "empty": ((empty, "-o", out), f"IMAGE: expected a picture, {empty} is none that Pillow"),
        "float": (
            (depth, "-o", out),
            f"IMAGE: {depth} cannot be read: it has floating-point pixels, expected 8",
        ),
        "many gaussians": (
            (image, "-o", out, "--gaussians", 10**7),
            "--gaussians: expected 1 to 1000000, got 10000000",
        ),
        "no steps": ((image, "-o", out, "--steps", 0), "--steps: expected 1 to 100000, got 0"),
        "no gaussians": (
            (image, "-o", out, "--gaussians", 0),
            "--gaussians: expected 1 to 1000000, got 0",
        ),
        "many steps": (
            (image, "-o", out, "--steps", 10**9),
            "--steps: expected 1 to 100000, got 1000000000",
        ),
        "seed": ((image, "-o", out, "--seed", -1), "--seed: expected 0 to "),
        "output is a file": (
            (image, "-o", taken),
            f"--output: expected a folder to write to, got {taken}: ",
        ),
        # Nobody may make files there, not even root.
        "unwritable": (
            (image, "-o", "/proc"),
            "--output: expected a folder to write to, got /proc",
        ),
    }


@pytest.mark.parametrize(
    "case",
    [
        *("missing", "folder", "text", "cut", "empty", "float", "no gaussians", "many gaussians"),
        *("no steps", "many steps", "seed", "output is a file", "unwritable"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(fit, image, tmp_path, case):
    arguments, message = bad_inputs(tmp_path, image)[case]
    done = fit(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"pyext: {message}"), done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [(12000, 9000), (20000, 20000)])  # Pillow warns; it refuses
def test_a_picture_too_large_to_open_is_refused(fit, tmp_path, size):
    huge = tmp_path / "huge.png"
    Image.new("1", size).save(huge)
    done = fit(huge, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith(f"pyext: IMAGE: expected at most 89478485 pixels, {huge}: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_settings_in_the_same_folder_are_refused(fit, image, tmp_path):
    folder = tmp_path / "out"
    assert fit(image, "-o", folder, "--gaussians", 50, "--steps", 3).returncode == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = fit(image, "-o", folder, "--gaussians", 60, "--steps", 3)
    assert done.returncode == 2
    assert f"{folder} holds a fit of gaussians 50, steps 3, seed 0" in done.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["target.png", "report.json"])
def test_files_of_the_user_are_not_overwritten(fit, image, tmp_path, name):
    folder = tmp_path / "own"
    folder.mkdir()
    own = folder / name
    own.write_bytes(image.read_bytes())
    done = fit(image, "-o", folder, "--gaussians", 5, "--steps", 1)
    assert done.returncode == 2
    assert done.stderr == (
        f"pyext: --output: {folder} already holds {name}, which is not of a fit; choose another "
        "folder\n"
    )
    assert own.read_bytes() == image.read_bytes() and len(list(folder.iterdir())) == 1


def test_a_full_disk_is_one_line(fit, image, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyext_plugins.checkpoint.save", fail)
    done = fit(image, "-o", tmp_path / "out", "--gaussians", 5, "--steps", 1)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"pyext: --output: cannot write to {tmp_path}/out: [Errno 28] No space left on device"
    )


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def start_long_fit(image, folder):
    arguments = [str(image), "-o", str(folder), "--gaussians", "50", "--steps", "100000"]
    process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True)
    return process, arguments


def test_ctrl_c_leaves_a_usable_result(image, tmp_path):
    folder = tmp_path / "out"
    process, _ = start_long_fit(image, folder)
    wait_for((folder / "checkpoint.safetensors").exists)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted at step" in err and "Traceback" not in err
    assert {path.name for path in folder.iterdir()} == OUTPUTS
    report = json.loads((folder / "report.json").read_text())
    assert not report["facts"]["complete"] and 0 < report["facts"]["steps taken"] < 100000
    assert report["facts"]["interrupted at step"] == report["facts"]["steps taken"]
    with Image.open(folder / "fit.png") as picture:
        assert picture.size == (64, 48)


def test_after_kill_9_the_same_command_goes_on(image, tmp_path):
    folder = tmp_path / "out"
    process, arguments = start_long_fit(image, folder)
    wait_for((folder / "checkpoint.safetensors").exists)
    process.kill()
    process.communicate()
    process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True)
    first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert first.startswith("resuming at step ") and int(first.split()[3]) > 0
