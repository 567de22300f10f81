"""`train` of the side networks: tables, batches, resuming, cached hidden states, bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from pyext_plugins import memory, session
from pyext_plugins.side import train as train_module
from pyext_plugins.side.cache import TapCache
from pyext_plugins.side.config import SherlConfig, UniptConfig
from pyext_plugins.side.files import WEIGHTS
from pyext_plugins.side.model import SideModel
from pyext_plugins.side.table import make_batches, read_table, split
from pyext_plugins.side.trained import load
from pyext_plugins.side.training import Settings

from pyext.errors import UserError
from tests.plugins.side_models import bert, encoder_folder, reviews, t5_encoder, t5_folder, text

RUN = (
    "import sys; from pathlib import Path; from pyext_plugins import session;"
    "session.CHECKPOINT_SECONDS = 0.0; session.SAVING_SHARE = 1.0;"
    "from pyext_plugins.side.app import {0}; sys.argv[0] = 'pyext {0}'; {0}()"
)


@pytest.fixture
def encoder(tmp_path):
    return encoder_folder(tmp_path / "encoder")


@pytest.fixture
def data(tmp_path):
    return reviews(tmp_path / "reviews.csv")


def train(method, encoder, data, output, reduction=2, compare=False, cache=None, **settings):
    settings = Settings(**{"epochs": 2, "batch": 8, "max_length": 16, **settings})
    columns = ("text", "label")
    train_module.run(method, encoder, data, columns, output, settings, reduction, compare, cache)
    return json.loads((output / "report.json").read_text())


@pytest.mark.parametrize("method", ["unipt", "sherl", "lst"])
def test_a_training_leaves_an_adapter_that_can_be_used(method, encoder, data, tmp_path, capsys):
    out = tmp_path / "out"
    report = train(method, encoder, data, out, epochs=15, step_size=1e-2)
    (row,) = report["rows"]
    assert row["arm"] == method and row["loss"] < 0.69  # of chance
    table, trained = read_table(data, "text", "label"), load(out, encoder)
    held_out = split(table.labels, 0.2, seed=0)[1]
    found = trained.predict([table.texts[row] for row in held_out])
    wanted = [table.names[table.labels[row]] for row in held_out]
    right = sum(a == b for a, b in zip(found, wanted, strict=True))
    assert row["accuracy"] == round(right / len(wanted), 4)
    before = (out / WEIGHTS).read_bytes()
    train(method, encoder, data, out, epochs=15, step_size=1e-2)
    assert "resuming at step 90 of 90" in capsys.readouterr().err
    assert (out / WEIGHTS).read_bytes() == before


def test_arms_are_compared_and_memory_is_in_order(encoder, data, tmp_path):
    pytest.importorskip("peft")
    report = train("unipt", encoder, data, tmp_path / "out", compare=True)
    rows = {row["arm"]: row for row in report["rows"]}
    assert list(rows) == ["unipt", "probe", "lora", "full"]
    saved = [rows[arm]["saved for backward (MiB)"] for arm in ("probe", "unipt", "lora", "full")]
    assert saved == sorted(saved) and saved[0] < saved[1] < saved[3]
    assert rows["probe"]["trained parameters"] == 16 * 2 + 2
    assert "parameters not counted" in report["facts"]["memory"]


@pytest.mark.parametrize("method", ["unipt", "sherl", "lst"])
def test_cached_hidden_states_give_the_same_bytes(method, encoder, data, tmp_path):
    train(method, encoder, data, tmp_path / "plain")
    report = train(method, encoder, data, tmp_path / "cached", cache=tmp_path / "taps")
    plain, cached = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("plain", "cached"))
    assert plain == cached
    assert report["facts"]["hidden states on disk (MiB)"] > 0


def test_a_cache_of_something_else_is_refused(tmp_path):
    batch = make_batches(Letters(), ["a", "bc"], [0, 1], 2, 8, None)
    folder = tmp_path / "taps"
    cache = TapCache(folder, SideModel(bert(), UniptConfig()).eval(), batch)
    cache.fill()
    for model, key in (
        (SideModel(bert(seed=1), UniptConfig()), "backbone"),
        (SideModel(bert(), UniptConfig(taps=(0, 3))), "taps"),
    ):
        with pytest.raises(UserError, match=f"--cache: .* holds hidden states of other {key};"):
            TapCache(folder, model, batch)
    with pytest.raises(UserError, match="holds hidden states of other batches"):
        TapCache(folder, cache.model, [*batch, *batch])
    with pytest.raises(ValueError, match="backbone_dropout: hidden states differ from step"):
        TapCache(folder, SideModel(bert(), UniptConfig(backbone_dropout=True)), batch)
    with pytest.raises(UserError, match="--cache: .* cannot be used: "):
        TapCache(folder / "taps.json", cache.model, batch)
    with pytest.raises(UserError, match="--cache: taps: the last block of this backbone needs"):
        TapCache(tmp_path / "t5", SideModel(t5_encoder(), SherlConfig()), batch)
    assert not (tmp_path / "t5").exists()
    (folder / "000000.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="--cache: .*000000.safetensors cannot be read"):
        cache[0]


def test_a_killed_training_goes_on_to_the_same_bytes(encoder, data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train("sherl", encoder, data, whole, epochs=12)
    options = ["--model", encoder, "--data", data, "--text-column", "text", "--label-column"]
    options += ["label", "--epochs", "12", "--batch", "8", "--max-length", "16", "-o", killed]
    command = [sys.executable, "-c", RUN.format("sherl"), "train", *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ})
    checkpoint = killed / "checkpoint.safetensors"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.exists() and not (killed / WEIGHTS).exists()
    train("sherl", encoder, data, killed, epochs=12)
    assert (killed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_the_encoder_of_an_encoder_decoder_is_taken(data, tmp_path):
    t5 = t5_folder(tmp_path / "t5")
    (row,) = train("sherl", t5, data, tmp_path / "out", epochs=1)["rows"]
    assert row["arm"] == "sherl"
    assert load(tmp_path / "out", t5).predict(["bad"])[0] in ("bad", "good")


def test_ctrl_c_ends_with_130(encoder, data, tmp_path, monkeypatch):
    def pressed(work, *arguments, **more):
        work.advance()

    monkeypatch.setattr("pyext_plugins.side.study.go_on", pressed)
    with pytest.raises(session.typer.Exit) as end:
        train("unipt", encoder, data, tmp_path / "out")
    assert end.value.exit_code == 130 and not (tmp_path / "out" / "report.json").exists()


def test_other_settings_and_files_of_the_user_are_refused(encoder, data, tmp_path):
    train("unipt", encoder, data, tmp_path / "out", epochs=1)
    with pytest.raises(UserError, match="holds a fit of method unipt, epochs 1, batch 8"):
        train("unipt", encoder, data, tmp_path / "out", epochs=2)
    with pytest.raises(UserError, match="holds a fit of .*config"):
        train("unipt", encoder, data, tmp_path / "out", epochs=1, reduction=4)
    own = tmp_path / "own"
    own.mkdir()
    (own / WEIGHTS).write_text("mine")
    with pytest.raises(UserError, match=f"--output: {own} already holds {WEIGHTS}"):
        train("unipt", encoder, data, own)
    assert (own / WEIGHTS).read_text() == "mine"


def bad_tables(tmp_path):
    contents = {
        "column": ("texts,label\na,x\nb,y\n", "--text-column: .* no column 'text'. Did you mean"),
        "empty": ("", "--text-column: .* has no column 'text'. It has: none"),
        "one label": ("text,label\na,x\nb,x\n", "expected at least 2 different labels in 'label'"),
        "blank": ("text,label\na,x\n ,y\n", "--data: .*, line 3: no text"),
        "short row": ("text,label\na,x\nb\n", "--data: .*, line 3: no label"),
        "lone label": ("text,label\na,x\nb,x\nc,y\n", "--data: expected at least 2 rows of each"),
    }
    for number, (content, message) in enumerate(contents.values()):
        path = tmp_path / f"{number}.csv"
        path.write_text(content)
        yield path, message
    latin = tmp_path / "latin.csv"
    latin.write_bytes("text,label\ncafé,x\n".encode("latin-1"))
    yield latin, "--data: .* is not UTF-8 text"
    yield tmp_path / "no.csv", "--data: .*no.csv cannot be read: No such file"


def test_bad_input_is_named_and_leaves_nothing(encoder, data, tmp_path):
    out = tmp_path / "out"
    for path, message in bad_tables(tmp_path):
        with pytest.raises(UserError, match=message):
            train("unipt", encoder, path, out)
    empty = tmp_path / "empty"
    empty.mkdir()
    for model, more, message in (
        (tmp_path / "no", {}, "--model: expected a folder with a transformers model, got"),
        (empty, {}, "--model: .*empty cannot be loaded: "),
        (encoder, {"max_length": 33}, "--max-length: expected at most 32 for this model, got 33"),
        (encoder, {"reduction": 0}, "--reduction: expected at least 1, got 0"),
        (encoder, {"epochs": 0}, "--epochs: expected 1 to 10000, got 0"),
        (encoder, {"holdout": 1.0}, "--holdout: expected 0.01 to 0.9, got 1.0"),
        (encoder, {"step_size": 0.0}, "--step-size: expected above 0 and below 10, got 0.0"),
    ):
        with pytest.raises(UserError, match=message):
            train("unipt", model, data, out, **more)
    assert not out.exists()


class Letters:
    """A tokenizer: a letter, a token."""

    def __call__(self, texts, truncation, max_length, padding=None):
        ids = [[ord(letter) - 96 for letter in text][:max_length] for text in texts]
        longest = max(map(len, ids))
        if padding is None:
            return {"input_ids": ids}
        fill = [longest - len(row) for row in ids]
        return {
            "input_ids": [row + [0] * n for row, n in zip(ids, fill, strict=True)],
            "attention_mask": [[1] * len(row) + [0] * n for row, n in zip(ids, fill, strict=True)],
        }


def test_batches_hold_every_text_once_and_like_lengths():
    texts = ["abcdefgh"[: 1 + i % 8] for i in range(50)]
    batches = make_batches(Letters(), texts, list(range(50)), 4, 6, seed=0)
    assert sorted(int(i) for b in batches for i in b.labels) == list(range(50))
    for batch in batches:
        assert batch.inputs["input_ids"].shape[1] == batch.inputs["attention_mask"].sum(1).max()
        for ids, label in zip(batch.inputs["input_ids"], batch.labels, strict=True):
            assert (ids > 0).sum() == min(len(texts[int(label)]), 6)
    places = sum(batch.tokens for batch in batches)
    assert places < 1.2 * sum(min(len(t), 6) for t in texts)


def test_a_split_keeps_the_shares_of_the_labels():
    labels = [0] * 50 + [1] * 10 + [2] * 2
    train, held_out = split(labels, 0.2, seed=0)
    assert sorted(train + held_out) == list(range(62))
    assert [sum(labels[i] == k for i in held_out) for k in range(3)] == [10, 2, 1]
    assert split(labels, 0.2, seed=1)[1] != held_out


def test_a_table_with_commas_lines_and_tabs(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('label,text\nx,"a, b\nc"\ny,"say ""hi"""\nx,d\u2028e\n', encoding="utf-8")
    table = read_table(path, "text", "label")
    assert table.texts == ["a, b\nc", 'say "hi"', "d\u2028e"] and table.names == ["x", "y"]
    tabs = tmp_path / "t.tsv"
    tabs.write_text("\ufefflabel\ttext\nx\ta, b\ny\tc\n")
    assert read_table(tabs, "text", "label").texts == ["a, b", "c"]


def test_saved_bytes_count_each_storage_once_and_no_parameter():
    w = torch.nn.Parameter(torch.randn(8, 8))
    x = torch.randn(4, 8, requires_grad=True)
    step = x.numel() * 4
    assert memory.saved_bytes(lambda: (x @ w).sum(), [w]) == step
    assert memory.saved_bytes(lambda: (x @ w).sum()) == step + w.numel() * 4
    assert memory.saved_bytes(lambda: (x.detach() @ w.detach()).sum()) == 0
    assert memory.saved_bytes(lambda: (x @ w).sum() + (x[:2] @ w).sum(), [w]) == step
    assert memory.saved_bytes(lambda: torch.relu(x @ w).square().sum(), [w]) == 2 * step


def test_the_peak_sees_a_large_tensor():
    peak = memory.PeakResident(torch.device("cpu"))
    before = peak.bytes()
    if before is None:
        pytest.skip("the system does not tell")
    torch.ones(64 * 2**20 // 4)
    assert peak.bytes() - before > 56 * 2**20


def test_a_frozen_backbone_saves_less_than_one_trained_through():
    given, saved = text(), {}
    for name, make in (
        ("full", lambda: bert()),
        ("sherl", lambda: SideModel(bert(), SherlConfig(reduction=8))),
        ("unipt", lambda: SideModel(bert(), UniptConfig(reduction=8))),
    ):
        model = make().train()
        run = lambda model=model: model(**given).last_hidden_state.sum()  # noqa: E731
        saved[name] = memory.saved_by(model, run)
    assert saved["unipt"] < saved["full"] and saved["sherl"] < saved["full"]
