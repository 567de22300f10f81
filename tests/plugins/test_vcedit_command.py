"""`pyext vcedit edit`: what it leaves, bad input, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from pyext_plugins.vcedit.app import app
from pyext_plugins.vcedit.simulation import make_world
from typer.testing import CliRunner

from pyext.errors import UserError
from pyext.scene import load, save

OUTPUTS = {"edited.ply", "guidance", "renders", "overview.png", "report.json"}
EDITOR = """
import pathlib, time

def redden(images, consistency):
    images = images.clone()
    images[..., 1:] *= 0.5
    return consistency.on_prediction(5, images)

def slow(images, consistency):
    pathlib.Path("started").touch()
    for step in range(10_000):
        time.sleep(0.02)
        consistency.on_prediction(step, images)
    return images

number = 3
"""


@pytest.fixture(scope="module")
def world():
    return make_world(torch.Generator().manual_seed(0))


def entries(cameras):
    return [
        {
            "viewmat": viewmat.tolist(),
            "K": K.tolist(),
            "width": cameras.width,
            "height": cameras.height,
        }
        for viewmat, K in zip(cameras.viewmats, cameras.Ks, strict=True)
    ]


@pytest.fixture
def files(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(world.scene, tmp_path / "scene.ply")
    (tmp_path / "cameras.json").write_text(json.dumps(entries(world.cameras)))
    (tmp_path / "my_editor.py").write_text(EDITOR)
    yield tmp_path
    sys.modules.pop("my_editor", None)


def arguments(editor="my_editor:redden", scene="scene.ply", cameras="cameras.json", out="out"):
    fixed = ["edit", scene, "--cameras", cameras, "--editor", editor, "-o", out]
    return [*fixed, "--rounds", "2", "--steps", "10"]


def test_an_edit_leaves_its_files(files, world):
    done = CliRunner().invoke(app, arguments(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    folder = files / "out"
    assert {path.name for path in folder.iterdir()} == OUTPUTS
    for name in ("guidance", "renders"):
        assert len(list((folder / name).iterdir())) == len(world.cameras)
    edited = load(folder / "edited.ply")
    assert len(edited) == len(world.scene)
    change = (edited.sh0 - load(files / "scene.ply").sh0).mean((0, 1))
    assert change[1] < -0.1 and change[2] < -0.1
    report = json.loads((folder / "report.json").read_text())
    assert report["facts"]["complete"] and report["facts"]["rounds done"] == 2
    with pytest.raises(UserError, match="out already holds edited.ply; choose another folder"):
        CliRunner().invoke(app, arguments(), catch_exceptions=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"editor": "my_editor"}, "--editor: expected module:function, got 'my_editor'"),
        ({"editor": "my_editor:none"}, "my_editor:none does not load: "),
        ({"editor": "my_editor:number"}, "--editor: my_editor:number is a int, not a function"),
        ({"scene": "none.ply"}, "none.ply: expected a scene file, there is none"),
        ({"cameras": "none.json"}, "--cameras: none.json cannot be read: "),
        ({"cameras": "my_editor.py"}, "--cameras: my_editor.py cannot be read: "),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(files, changed, message):
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, arguments(**changed), catch_exceptions=False)
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda cameras: {"frames": cameras}, "cameras.json: expected a list of cameras"),
        (lambda cameras: [], "cameras.json: expected a list of cameras"),
        (lambda cameras: [1], "camera 0: expected viewmat, K, width and height, got 1"),
        (lambda cameras: [cameras[0], {**cameras[1], "K": [[1, 2], [3, 4]]}],
         "camera 1: K: expected 3 x 3 finite numbers, got 2 x 2"),
        (lambda cameras: [{**cameras[0], "viewmat": "x"}], "camera 0: viewmat: expected numbers"),
        (lambda cameras: [{**cameras[0], "width": 4.5}], "camera 0: width: expected a number of"),
        (lambda cameras: [cameras[0], {**cameras[1], "width": 41}],
         "camera 1 has 41 x 40 pixels, camera 0 40 x 40; expected one size"),
    ],
)  # fmt: skip
def test_bad_cameras_are_named(files, world, spoil, message):
    (files / "cameras.json").write_text(json.dumps(spoil(entries(world.cameras))))
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, arguments(), catch_exceptions=False)


def test_ctrl_c_while_the_editor_runs_leaves_a_usable_result(files):
    code = "from pyext_plugins.vcedit.app import app; app()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments(editor="my_editor:slow")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    for _ in range(600):
        if (files / "started").exists():
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err and "Traceback" not in err
    assert {path.name for path in (files / "out").iterdir()} == OUTPUTS - {"guidance"}
    assert not json.loads((files / "out" / "report.json").read_text())["facts"]["complete"]
