"""`pathweave train` and `test`: files of features, stage after stage, resuming, bad input."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from pyext_plugins import session
from pyext_plugins.pathweave import train as train_module
from pyext_plugins.pathweave.app import app
from pyext_plugins.pathweave.features import Features
from pyext_plugins.pathweave.files import CONFIG, WEIGHTS
from pyext_plugins.pathweave.loading import load_base
from pyext_plugins.pathweave.reader import PIECES, load_reader
from pyext_plugins.pathweave.training import Settings
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pyext.errors import UserError
from tests.plugins.pathweave_models import ENCODER, HIDDEN, SMALL, qformer, transformers

RUN = (
    "import sys; from pyext_plugins import session;"
    "session.CHECKPOINT_SECONDS = 0.0; session.SAVING_SHARE = 1.0;"
    "from pyext_plugins.pathweave.app import app; sys.argv[0] = 'pyext pathweave'; app()"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qformer")
    qformer().save_pretrained(folder)
    return folder


def features(path, rows=40, tokens=4, width=ENCODER, classes=2, seed=0, dtype=torch.float32):
    """Each class around a place of its own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    places = torch.randn(classes, 1, width, generator=generator)
    noise = torch.randn(rows, tokens, width, generator=generator)
    save_file({"features": (places[labels] + 0.3 * noise).to(dtype), "labels": labels}, path)
    return path


def train(model, modality, data, output, previous=None, **settings):
    settings = Settings(**{"epochs": 2, "batch": 8, "rank": 2, "queries": 3, **settings})
    train_module.run(model, modality, data, previous, output, settings)
    return json.loads((output / "report.json").read_text())


def test_stage_after_stage_leaves_earlier_ones_as_they_were(model, tmp_path, capsys):
    folders, scores, tensors = [], [], []
    files = [
        features(tmp_path / "video.safetensors", seed=1),
        features(
            tmp_path / "audio.safetensors", rows=90, width=7, classes=3, seed=2, dtype=torch.float16
        ),
        features(tmp_path / "depth.safetensors", tokens=2, seed=3),
    ]
    for modality, data in zip(("video", "audio", "depth"), files, strict=True):
        previous = folders[-1] if folders else None
        folders.append(tmp_path / modality)
        report = train(model, modality, data, folders[-1], previous, epochs=8, step_size=1e-2)
        (row,) = report["rows"]
        assert row["modality"] == modality and row["accuracy"] > 0.7
        assert row["saved for backward (MiB)"] > 0 and "parameters not counted" in json.dumps(
            report["facts"]["memory"]
        )
        scores.append(train_module.test(model, folders[-1], modality, data))
        tensors.append({**load_file(folders[-1] / WEIGHTS), **load_file(folders[-1] / PIECES)})
    for before, after in zip(tensors, tensors[1:], strict=False):
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    capsys.readouterr()
    for modality, data, score in zip(("video", "audio", "depth"), files, scores, strict=True):
        options = ["--model", model, "--paths", folders[-1], "--modality", modality]
        found = CliRunner().invoke(app, ["test", *map(str, options), "--features", str(data)])
        assert found.exit_code == 0, found.output
        assert json.loads(found.stdout)["loss"] == score.loss
    reader = load_reader(folders[-1], model)
    assert reader.names == ["video", "audio", "depth"]
    assert reader.own.queries.shape == (1, 3, HIDDEN)
    reader.paths.set_modality("audio")
    assert reader(Features(files[1]).read([0, 1])).shape == (2, 3)


def test_a_killed_training_goes_on_to_the_same_bytes(model, tmp_path):
    whole, killed, first = tmp_path / "whole", tmp_path / "killed", tmp_path / "first"
    train(model, "video", features(tmp_path / "video.safetensors"), first)
    data = features(tmp_path / "audio.safetensors", seed=2)
    train(model, "audio", data, whole, first, epochs=6)
    options = ["--model", model, "--modality", "audio", "--features", data, "--from", first]
    options += ["--epochs", 6, "--batch", 8, "--rank", 2, "--queries", 3, "-o", killed]
    command = [sys.executable, "-c", RUN, "train", *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    checkpoint = killed / "checkpoint.safetensors"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.exists() and not (killed / WEIGHTS).exists()
    train(model, "audio", data, killed, first, epochs=6)
    for name in (WEIGHTS, PIECES, CONFIG):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_the_command_trains_and_goes_on(model, tmp_path):
    data, out = features(tmp_path / "f.safetensors"), tmp_path / "out"
    options = ["--model", model, "--modality", "video", "--features", data, "-o", out]
    options += ["--epochs", 1, "--batch", 8, "--rank", 2, "--gate", "none", "--alone"]
    for _ in range(2):
        found = CliRunner().invoke(app, ["train", *map(str, options)])
        assert found.exit_code == 0, found.output
    assert "resuming at step 4 of 4" in found.stderr
    content = json.loads((out / CONFIG).read_text())
    wanted = {"name": "video", "rank": 2, "gate": "none", "reuse": False}
    assert content["modalities"] == [wanted]
    assert content["pieces"]["video"] == {"width": ENCODER, "queries": 32, "classes": 2}


def test_ctrl_c_ends_with_130(model, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "go_on", lambda work, *a, **more: work.advance())
    with pytest.raises(session.typer.Exit) as end:
        train(model, "video", features(tmp_path / "f.safetensors"), tmp_path / "out")
    assert end.value.exit_code == 130 and not (tmp_path / "out" / "report.json").exists()


def whole_model(kind, tmp_path):
    """A folder of a model with an encoder and a language model, as far as it is read."""
    inside = qformer(kind, seed=3)
    tensors = {f"qformer.{name}": tensor for name, tensor in inside.state_dict().items()}
    tensors["query_tokens"] = torch.full((1, 5, HIDDEN), 0.5)
    tensors["language_model.weight"] = torch.zeros(2, 2)
    folder = tmp_path / kind
    folder.mkdir()
    save_file(dict(list(tensors.items())[:6]), folder / "model-00001-of-00002.safetensors")
    save_file(dict(list(tensors.items())[6:]), folder / "model-00002-of-00002.safetensors")
    parts = {
        "qformer_config": {**SMALL, "vocab_size": 20},
        "vision_config": {"hidden_size": ENCODER},
    }
    config = getattr(transformers, f"{kind}Config")(**parts)
    (folder / "config.json").write_text(config.to_json_string())
    return folder, inside


@pytest.mark.parametrize("kind", ["Blip2", "InstructBlip", "InstructBlipVideo"])
def test_a_qformer_is_taken_out_of_a_whole_model(kind, tmp_path):
    folder, inside = whole_model(kind, tmp_path)
    base = load_base(folder)
    assert type(base.qformer) is type(inside) and base.reads_text == (kind != "Blip2")
    found = base.qformer.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in inside.state_dict().items())
    data = features(tmp_path / "f.safetensors")
    train(folder, "video", data, tmp_path / "out", queries=None, epochs=1)
    queries = load_file(tmp_path / "out" / PIECES)["video/queries"]
    assert queries.shape == (1, 5, HIDDEN) and (queries - 0.5).abs().max() < 0.1


def test_other_settings_other_earlier_paths_and_files_of_the_user_are_refused(model, tmp_path):
    data, out = features(tmp_path / "f.safetensors"), tmp_path / "out"
    train(model, "video", data, out, epochs=1)
    with pytest.raises(UserError, match="holds a fit of modality video, epochs 1, batch 8"):
        train(model, "video", data, out, epochs=2)
    train(model, "video", data, tmp_path / "other", epochs=2)
    train(model, "audio", data, tmp_path / "audio", out, epochs=1)
    with pytest.raises(UserError, match="holds a fit of previous"):
        train(model, "audio", data, tmp_path / "audio", tmp_path / "other", epochs=1)
    own = tmp_path / "own"
    own.mkdir()
    (own / PIECES).write_text("mine")
    with pytest.raises(UserError, match=f"--output: {own} already holds {PIECES}"):
        train(model, "video", data, own)
    assert (own / PIECES).read_text() == "mine"


def bad_features(tmp_path):
    numbers, labels = torch.randn(6, 2, ENCODER), torch.tensor([0, 1] * 3)
    for tensors, message in (
        ({"features": numbers}, "--features: .* has no tensor 'labels'"),
        ({"labels": labels}, "--features: .* has no tensor 'features'"),
        ({"features": numbers[0], "labels": labels}, "expected floats .n, tokens, width. in feat"),
        ({"features": numbers.long(), "labels": labels}, "expected floats .*, got I64"),
        ({"features": numbers, "labels": labels[:5]}, r"whole numbers \[6\] in labels, got .* \[5"),
        ({"features": numbers, "labels": labels.float()}, "whole numbers .* got torch.float32"),
        ({"features": numbers, "labels": labels - 1}, "expected labels from 0, and at least 2"),
        ({"features": numbers, "labels": labels * 0}, "expected labels from 0, and at least 2"),
        (
            {"features": numbers, "labels": torch.tensor([0, 0, 0, 0, 0, 1])},
            "expected at least 2 rows of each label, 1 has 1",
        ),
        (
            {"features": numbers.clone().fill_(torch.nan), "labels": torch.tensor([0, 1] * 3)},
            "--features: expected finite numbers, row .* has others",
        ),
    ):
        path = tmp_path / "bad.safetensors"
        save_file(tensors, path)
        yield path, message
    path.write_bytes(b"x")
    yield path, "--features: .* cannot be read"
    yield tmp_path / "no.safetensors", "--features: .* cannot be read"


def test_bad_input_is_named_and_leaves_no_result(model, tmp_path):
    out, data = tmp_path / "out", features(tmp_path / "f.safetensors")
    for path, message in bad_features(tmp_path):
        with pytest.raises(UserError, match=message):
            train(model, "video", path, out)
    assert not (out / WEIGHTS).exists()
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((model / "config.json").read_text())
    first = tmp_path / "first"
    train(model, "video", data, first, epochs=1)
    for where, name, previous, more, message in (
        (tmp_path, "video", None, {}, "--model: expected a folder with a transformers Q-Former"),
        (other, "video", None, {}, "--model: expected model_type blip_2_qformer, .*, got 'bert'"),
        (
            bare,
            "video",
            None,
            {},
            "--model: expected weights in safetensors files, .*bare has none",
        ),
        (model, "a b", None, {}, "--modality: expected letters, digits"),
        (model, "video", first, {}, "--modality: 'video' is learned already; learned: video"),
        (model, "audio", tmp_path / "no", {}, "adapter_config.json cannot be read"),
        (model, "audio", out, {}, "--from: expected another folder than --output"),
        (model, "video", None, {"rank": 13}, "--rank: expected 1 to 12 at site .*key', got 13"),
        (model, "video", None, {"rank": 0}, "--rank: expected 1 to 128, got 0"),
        (model, "video", None, {"queries": 0}, "--queries: expected 1 to 10000, got 0"),
        (model, "video", None, {"step_size": 0.0}, "--step-size: expected above 0 and below 10"),
    ):
        with pytest.raises(UserError, match=message):
            train(where, name, data, out, previous, **more)
    with pytest.raises(UserError, match="--modality: unknown modality 'x'; learned: video"):
        train_module.test(model, first, "x", data)
    wide = features(tmp_path / "wide.safetensors", width=5)
    with pytest.raises(UserError, match="expected width 12 and at most 2 labels for video, got 5"):
        train_module.test(model, first, "video", wide)
    (first / PIECES).unlink()
    with pytest.raises(UserError, match=f"{PIECES} cannot be read"):
        train_module.test(model, first, "video", data)
