"""`pyext diffii`: inversion and generation of folders; bytes, resuming, shares, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

import numpy as np
from PIL import Image
from pyext_plugins.diffii import commands, work
from pyext_plugins.diffii.app import app
from pyext_plugins.diffii.commands import Options
from pyext_plugins.diffii.manifest import Settings, load_manifest
from pyext_plugins.diffii.pool import load_pool
from typer.testing import CliRunner

from pyext.errors import UserError
from tests.plugins.diffii_models import CLASSES, picture_folder, pixel_folder

SMALL = Settings(expansion=2, steps=3, guidance=2.0, batch=4)
RUN = "from pyext_plugins.diffii.app import app; app()"


@pytest.fixture
def model(tmp_path):
    return pixel_folder(tmp_path / "model", classes=4)


@pytest.fixture
def data(tmp_path):
    return picture_folder(tmp_path / "data")


def options(model, **more):
    return Options(model, **{"null_label": 3, "threads": 1, **more})


def augment(data, model, output, settings=SMALL, **more):
    commands.augment(data, output, options(model, **more), 4, settings)
    return content(output)


def content(output):
    """Bytes of all results, by name."""
    files = sorted(path for path in output.rglob("*") if path.is_file())
    names = [path for path in files if path.name != "report.json"]  # which holds times
    return {str(path.relative_to(output)): path.read_bytes() for path in names}


def test_a_folder_is_augmented_and_the_same_bytes_come_again(data, model, tmp_path, capsys):
    first = augment(data, model, tmp_path / "out")
    images = [name for name in first if name.startswith("images/")]
    assert len(images) == 2 * 8 and {name.split("/")[1] for name in images} == set(CLASSES)
    assert set(first) - set(images) == {"inversions.safetensors", "manifest.jsonl"}
    assert augment(data, model, tmp_path / "again") == first
    assert len(set(first[name] for name in images)) == len(images)
    pool = load_pool(tmp_path / "out" / "inversions.safetensors")
    assert {name: len(x) for name, x in pool.tensors.items()} == dict(
        zip(CLASSES, (3, 2, 3), strict=True)
    )
    assert pool.facts["conditions"] == {name: f"label {k}" for k, name in enumerate(CLASSES)}
    header = json.loads(first["manifest.jsonl"].decode().splitlines()[0])
    assert header["inversions"] == pool.digest and header["threads"] == 1
    capsys.readouterr()
    augment(data, model, tmp_path / "out")  # all there: nothing is made
    assert "0 images made" in capsys.readouterr().out
    # In two commands, the same.
    commands.invert(data, tmp_path / "two", options(model), 4, SMALL.batch)
    inversions = tmp_path / "two" / "inversions.safetensors"
    commands.generate(inversions, tmp_path / "two", options(model), SMALL)
    assert content(tmp_path / "two") == first


def test_one_image_is_made_again_to_the_same_bytes(data, model, tmp_path, capsys):
    out = tmp_path / "out"
    whole = augment(data, model, out)
    for identity in ("cat/00003", "emu/00005"):  # in the midst of a batch, and in the last
        (out / "images" / f"{identity}.png").unlink()
        commands.regenerate(out / "inversions.safetensors", out, options(model), identity)
        assert capsys.readouterr().out.strip().endswith(f"{identity}.png")
        assert content(out) == whole
    with pytest.raises(UserError, match="--only: no image 'cat/0003'. Did you mean 'cat/00003'?"):
        commands.regenerate(out / "inversions.safetensors", out, options(model), "cat/0003")


def test_options_that_the_manifest_has_settled_are_refused(model, tmp_path):
    """What would be ignored beside --only is named; what is not, the model's, is let through."""
    out = tmp_path / "out"
    words = ["generate", "--inversions", tmp_path / "none", "--model", model, "-o", out]
    words += ["--null-label", 3, "--threads", 1, "--only", "cat/00003"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert str(result.exception).startswith("--inversions: ")  # there are none
    words += ["--steps", 3, "--suffix-fraction", 0.0]  # its default, but asked for
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert str(result.exception) == (
        "--only: the manifest has the settings, expected none beside it, got --steps, "
        "--suffix-fraction"
    )


def test_what_is_missing_is_made_to_the_same_bytes(data, model, tmp_path):
    out = tmp_path / "out"
    whole = augment(data, model, out)
    (out / "images/dog/00001.png").unlink()
    (out / "images/dog/.left.png").write_bytes(b"cut off")
    assert augment(data, model, out) == whole


def test_batches_give_what_one_at_a_time_gives(data, model, tmp_path):
    batched, single = tmp_path / "batched", tmp_path / "single"
    augment(data, model, batched)
    augment(data, model, single, replace(SMALL, batch=1))
    manifests = [load_manifest(out / "manifest.jsonl") for out in (batched, single)]
    for a, b in zip(*(m.images for m in manifests), strict=True):
        assert (a.id, a.rows, a.phi, a.seed) == (b.id, b.rows, b.phi, b.seed)
        files = [out / "images" / f"{a.id}.png" for out in (batched, single)]
        first, second = (np.array(Image.open(file)).astype(int) for file in files)
        assert abs(first - second).max() <= 1  # bits differ with the batch, levels hardly


def test_a_killed_run_goes_on_to_the_same_bytes(data, model, tmp_path):
    settings = replace(SMALL, expansion=12)
    whole = augment(data, model, tmp_path / "whole", settings)
    killed = tmp_path / "killed"
    words = ["augment", data, "--model", model, "-o", killed, "--null-label", 3, "--threads", 1]
    words += [
        "--inversion-steps",
        4,
        "--steps",
        3,
        "--guidance",
        2,
        "--expansion",
        12,
        "--batch",
        4,
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ},
    )
    while not list(killed.glob("images/*/0*.png")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(list(killed.glob("images/*/0*.png"))) < 12 * 8
    assert augment(data, model, killed, settings) == whole


def test_an_interrupted_inversion_goes_on(data, model, tmp_path, monkeypatch, capsys):
    whole = augment(data, model, tmp_path / "whole")
    asked = 0

    @contextmanager
    def pressed_after_a_batch():
        def stopped():
            nonlocal asked
            asked += 1
            return asked > 5

        yield stopped

    with monkeypatch.context() as patched:
        patched.setattr(work, "interruptible", pressed_after_a_batch)
        with pytest.raises(work.typer.Exit) as end:
            augment(data, model, tmp_path / "out")
    assert end.value.exit_code == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    assert len(list((tmp_path / "out" / "parts").glob("*.safetensors"))) == 1
    assert augment(data, model, tmp_path / "out") == whole


def test_processes_share_the_work(data, model, tmp_path, monkeypatch):
    """Two processes of accelerate, one after the other: all but the last wait for nobody."""
    whole = augment(data, model, tmp_path / "whole")
    inversions = tmp_path / "whole" / "inversions.safetensors"
    device = torch.device("cpu")
    made = []
    for number in (0, 1):
        process = SimpleNamespace(
            process_index=number,
            num_processes=2,
            is_main_process=number == 0,
            device=device,
            wait_for_everyone=lambda: None,
        )
        monkeypatch.setattr(work, "PartialState", lambda process=process, **more: process)
        commands.generate(inversions, tmp_path / "shared", options(model), SMALL)
        made.append(len(list((tmp_path / "shared").glob("images/*/*.png"))))
    assert made == [8, 16]
    shared = content(tmp_path / "shared")
    assert shared == {name: whole[name] for name in shared}


def test_models_without_classes_and_pictures_of_other_kinds(tmp_path, capsys):
    data = picture_folder(tmp_path / "data", counts=(2, 1))
    Image.new("LA", (4, 9), (20, 128)).save(data / "dog" / "grey.png")
    model = pixel_folder(tmp_path / "model", channels=3, clip_sample=True)
    settings = replace(SMALL, guidance=1.0, norm="slerp")
    first = augment(data, model, tmp_path / "out", settings, null_label=None)
    assert len([name for name in first if name.startswith("images/")]) == 8
    assert "warning: scheduler: the model's has clip_sample=True" in capsys.readouterr().err
    found = load_manifest(tmp_path / "out" / "manifest.jsonl")
    assert all(0 <= image.phi < 1 for image in found.images)


def test_a_class_of_one_picture_starts_from_noise_if_asked(tmp_path, model):
    data = picture_folder(tmp_path / "data", counts=(2, 1, 2))
    with pytest.raises(UserError, match="class 'dog' has 1 picture; circle interpolation needs 2"):
        augment(data, model, tmp_path / "out")
    augment(data, model, tmp_path / "out", replace(SMALL, single="noise"))
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert [row["of noise"] for row in rows] == [0, 2, 0]


def test_a_copy_of_a_picture_is_named(data, model, tmp_path):
    (data / "dog" / "1.png").write_bytes((data / "dog" / "0.png").read_bytes())
    with pytest.raises(UserError, match="inversions of dog/0.png and dog/1.png: parallel, .* copy"):
        augment(data, model, tmp_path / "out")


def test_results_of_something_else_are_refused(data, model, tmp_path):
    out = tmp_path / "out"
    augment(data, model, out)
    for settings, text in (
        (replace(SMALL, seed=1), "lists images with seed 0, this has 1; choose another folder"),
        (replace(SMALL, steps=4), "lists images with steps 3, this has 4"),
        (replace(SMALL, batch=2), "holds inversions with other batch; choose another folder"),
    ):
        with pytest.raises(UserError, match=text):
            augment(data, model, out, settings)
    with pytest.raises(UserError, match="holds inversions with other scheduler"):
        augment(data, model, out, spacing="leading")
    other = pixel_folder(tmp_path / "other", classes=5)
    inversions = out / "inversions.safetensors"
    with pytest.raises(UserError, match="--inversions: expected those of this model, with model "):
        commands.generate(inversions, tmp_path / "new", options(other), SMALL)
    with pytest.raises(UserError, match="with scheduler timestep_spacing leading, got timestep_sp"):
        commands.generate(inversions, tmp_path / "new", options(model, spacing="leading"), SMALL)
    users = tmp_path / "users"
    (users / "images").mkdir(parents=True)
    with pytest.raises(UserError, match="already holds images, which are not of this command"):
        commands.generate(inversions, users, options(model), SMALL)


def test_bad_input_is_named(data, model, tmp_path):
    out = tmp_path / "out"
    plain = pixel_folder(tmp_path / "plain")
    concepts = tmp_path / "concepts.json"
    concepts.write_text('{"cat": "1"}')
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    for arguments, settings, text in (
        ((data, tmp_path / "no"), SMALL, "--model: expected a folder of a diffusers pipeline"),
        ((data, odd), SMALL, "--model: expected StableDiffusionPipeline, DDPMPipeline, .* Flux"),
        ((tmp_path / "no", model), SMALL, "DATA: expected a folder with a folder for each class"),
        ((data, plain), SMALL, "--guidance: expected 1 for a model with no classes, got 2"),
        (
            (data, model),
            replace(SMALL, suffixes=("a",), suffix_fraction=0.5),
            "--suffixes: this model reads no text",
        ),
    ):
        with pytest.raises(UserError, match=text):
            augment(*arguments, out, settings)
    for more, text in (
        ({"null_label": 9}, "labels: expected 0 to 3 for this U-Net, got 9 for class 'null'"),
        ({"null_label": None}, "--guidance: expected 1 for a model with no --null-label, got 2"),
        ({"dtype": "int8"}, "--dtype: expected float32, float16, bfloat16, got 'int8'"),
        ({"spacing": "linspace"}, "spacing: expected 'trailing' or 'leading', got 'linspace'"),
        ({"prompt": "a {}"}, "--prompt: .* is a DDPMPipeline, which reads no text"),
        ({"concepts": concepts}, "--concepts: expected an object from class to number in"),
        ({"concepts": tmp_path / "no"}, "--concepts: .* cannot be read: No such file"),
        ({"threads": 0}, "--threads: expected at least 1, got 0"),
    ):
        with pytest.raises(UserError, match=text):
            augment(data, model, out, **more)
    concepts.write_text('{"cat": 1, "dog": 0}')
    with pytest.raises(UserError, match="class 'emu': the model has no label for it; see --conce"):
        augment(data, model, out, concepts=concepts)
    with pytest.raises(UserError, match="--inversion-steps: expected 1 to 1000, got 0"):
        commands.augment(data, out, options(model), 0, SMALL)
    (data / "cat" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="DATA: expected a picture, .*broken.png is none"):
        augment(data, model, out)
    (data / "fox").mkdir()
    with pytest.raises(UserError, match="DATA: .*fox holds no pictures"):
        augment(data, model, out)
