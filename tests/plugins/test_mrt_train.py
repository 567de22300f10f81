"""`pyext mrt train`: samples from files, prompts and answers, resuming, the report, bad input."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from pyext_plugins import session
from pyext_plugins.mrt import train as train_module
from pyext_plugins.mrt.app import app, numbers
from pyext_plugins.mrt.config import MrtConfig
from pyext_plugins.mrt.model import MrtEditor
from pyext_plugins.mrt.samples import Reader, Sample, read_samples
from pyext_plugins.mrt.training import Settings, evaluate
from pyext_plugins.reft.files import CONFIG, WEIGHTS
from typer.testing import CliRunner

from pyext.errors import UserError
from tests.plugins.reft_models import IMAGE, PATCHES, llava
from tests.plugins.side_models import encoder_folder, transformers

RUN = (
    "import sys; from pyext_plugins import session;"
    "session.CHECKPOINT_SECONDS = 0.0; session.SAVING_SHARE = 1.0;"
    "from pyext_plugins.mrt.app import app; sys.argv[0] = 'pyext mrt'; app()"
)
WORDS = ["<pad>", "<unk>", "<s>", "</s>", "USER", ":", "ASSISTANT", "what", "colour", "is", "it"]
WORDS += ["dark", "light", "?", "say", "yes", "no"]
SMALL = MrtConfig(vision_rank=2, text_rank=2, prefix=2, suffix=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A LLaVA of a few words on disk."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("models") / "llava"
    llava().save_pretrained(folder)
    words = {word: number for number, word in enumerate(WORDS)}
    words["<image>"] = IMAGE
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    ).save_pretrained(folder)
    size = {"crop_size": {"height": 8, "width": 8}, "size": {"shortest_edge": 8}}
    transformers.CLIPImageProcessorPil(**size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Dark and light pictures, and one question on none."""
    place = tmp_path_factory.mktemp("data")
    (place / "pictures").mkdir()
    rows = [{"question": "say yes", "answer": "yes"}]
    for number in range(12):
        light = number % 2
        name = f"pictures/{number}.png"
        Image.new("RGB", (9, 11), (40 + 150 * light + number,) * 3).save(place / name)
        answer = ("dark", "light")[light]
        rows.append({"image": name, "question": "what colour is it?", "answer": answer})
    path = place / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    with (place / "questions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def train(folder, data, output, config=SMALL, **settings):
    settings = Settings(**{"epochs": 2, "batch": 4, "step_size": 1e-2, **settings})
    train_module.run(folder, data, output, config, settings)
    return json.loads((output / "report.json").read_text())


def test_csv_and_json_lines_hold_the_same(data):
    found = read_samples(data).samples
    assert found == read_samples(data.with_suffix(".csv")).samples
    assert found[0] == Sample(None, "say yes", "yes") and found[1].image.name == "0.png"


def reader(folder, **more):
    model, tokenizer, processor = train_module.load_llava(folder)
    settings = {"template": Settings.template, "max_length": 64, **more}
    return Reader(tokenizer, processor, model.config, **settings), tokenizer


def test_a_sample_is_prompt_and_answer(folder, data):
    own, tokenizer = reader(folder)
    text, picture = (own.tokens(sample) for sample in read_samples(data).samples[:2])
    read = tokenizer.convert_ids_to_tokens
    assert read(text.ids) == ["<s>", "USER", ":", "say", "yes", "ASSISTANT", ":", "yes", "</s>"]
    wanted = ["<s>", "USER", ":", *["<image>"] * PATCHES, *["what", "colour", "is", "it", "?"]]
    assert read(picture.ids) == [*wanted, "ASSISTANT", ":", "dark", "</s>"]
    assert read(picture.ids[: picture.prompt])[-2:] == ["ASSISTANT", ":"]
    batch = own.batch([text, picture], torch.float32)
    assert batch["pixel_values"].shape == (1, 3, 8, 8)
    assert (batch["labels"][0] != -100).nonzero().flatten().tolist() == [7, 8]
    assert batch["attention_mask"].sum(1).tolist() == [len(text.ids), len(picture.ids)]
    other, _ = reader(folder, template="{question} USER: {image}")
    assert read(other.tokens(Sample(data, "say", "no")).ids)[1:4] == ["say", "USER", ":"]


def test_a_training_leaves_editors_that_can_be_used(folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    report = train(folder, data, out, epochs=20)
    (row,) = report["rows"]
    assert row["loss held out"] < row["loss held out, untouched"] - 0.1
    assert row["loss in training"] < row["loss held out, untouched"] - 0.1
    assert row["saved for backward (MiB)"] > 0 and "inputs counted" in report["facts"]["memory"]
    model, *_ = train_module.load_llava(folder)
    own, _ = reader(folder)
    editor = MrtEditor.from_pretrained(model, out)
    samples = [own.tokens(sample) for sample in read_samples(data).samples]
    test = train_module.split(len(samples), 0.1, 0)[1]
    found = evaluate(editor.model, own, [samples[number] for number in test])
    assert round(found, 4) == row["loss held out"]
    before = (out / WEIGHTS).read_bytes()
    capsys.readouterr()
    train(folder, data, out, epochs=20)
    assert "resuming at step 60 of 60" in capsys.readouterr().err
    assert (out / WEIGHTS).read_bytes() == before


def test_a_killed_training_goes_on_to_the_same_bytes(folder, data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(folder, data, whole, epochs=20)
    options = ["--model", folder, "--data", data, "--epochs", 20, "--batch", 4, "-o", killed]
    options += ["--step-size", "1e-2", "--vision-rank", 2, "--text-rank", 2, "--length", 2]
    command = [sys.executable, "-c", RUN, "train", *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ})
    checkpoint = killed / "checkpoint.safetensors"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.exists() and not (killed / WEIGHTS).exists()
    train(folder, data, killed, epochs=20)
    for name in (WEIGHTS, CONFIG):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_the_command_trains(folder, data, tmp_path):
    options = ["--model", folder, "--data", data, "-o", tmp_path / "out", "--epochs", 1]
    options += ["--vision-layers", "0", "--text-layers", "0-1"]
    found = CliRunner().invoke(app, ["train", *map(str, options)])
    assert found.exit_code == 0, found.output
    assert "final loss" in found.output and (tmp_path / "out" / WEIGHTS).exists()
    content = json.loads((tmp_path / "out" / CONFIG).read_text())
    places = [editor["path"].rpartition(".")[2] for editor in content["editors"]]
    assert places == ["0", "multi_modal_projector", "0", "1"]
    assert content["config"]["prefix"] == 4


def test_layers_are_read_from_text():
    assert numbers("--text-layers", "1,3-5, 8") == (1, 3, 4, 5, 8)
    assert numbers("--text-layers", None) is None and numbers("--text-layers", "none") == ()
    for text in ("", "odd", "3-", "-2"):
        with pytest.raises(UserError, match="--text-layers: expected numbers as 1,3,5-9, or none"):
            numbers("--text-layers", text)


def test_ctrl_c_ends_with_130(folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "go_on", lambda work, *arguments, **more: work.advance())
    with pytest.raises(session.typer.Exit) as end:
        train(folder, data, tmp_path / "out")
    assert end.value.exit_code == 130 and not (tmp_path / "out" / "report.json").exists()


def test_other_settings_and_files_of_the_user_are_refused(folder, data, tmp_path):
    train(folder, data, tmp_path / "out", epochs=1)
    with pytest.raises(UserError, match="holds a fit of epochs 1, batch 4"):
        train(folder, data, tmp_path / "out", epochs=2)
    with pytest.raises(UserError, match="holds a fit of config"):
        train(folder, data, tmp_path / "out", MrtConfig(vision_rank=2, text_rank=2), epochs=1)
    own = tmp_path / "own"
    own.mkdir()
    (own / WEIGHTS).write_text("mine")
    with pytest.raises(UserError, match=f"--output: {own} already holds {WEIGHTS}"):
        train(folder, data, own)


def bad_files(place):
    contents = {
        "a.txt": ("", "--data: expected a .csv, .tsv, .jsonl or .json file"),
        "b.csv": ("image,answer\n,x\n", "--data: .* has no column 'question'. It has: image, an"),
        "c.csv": ("question,answer\na,b\n,b\n", "--data: .*, line 3: no question"),
        "d.jsonl": ('{"question": "a", "answer": ""}\n', "--data: .*, line 1: no answer"),
        "e.jsonl": ('{"question": "a"\n', "--data: .*, line 1: expected JSON"),
        "f.jsonl": ("[1]\n", "--data: .*, line 1: expected an object"),
        "g.jsonl": ('{"question": 1, "answer": "b"}\n', "line 1: question: expected text, got 1"),
        "h.csv": ("image,question,answer\nno.png,a,b\n", "line 2: image: .*no.png is not a file"),
        "i.csv": ("question,answer\na,b\n", "--data: .*: expected at least 2 samples, got 1"),
        "j.csv": ("question,answer\n<image>,b\na,b\n", "--data: the model's word for an image"),
        "k.csv": (
            "image,question,answer\n" + "k.csv,a,b\n" * 3,
            "--data: expected a picture, .*k.csv",
        ),
    }
    for name, (content, message) in contents.items():
        (place / name).write_text(content)
        yield place / name, message
    yield place / "no.csv", "--data: .*no.csv cannot be read: No such file"


def test_bad_input_is_named(folder, data, tmp_path):
    out = tmp_path / "out"
    for path, message in bad_files(tmp_path):
        with pytest.raises(UserError, match=message):
            train(folder, path, out)
    encoder = encoder_folder(tmp_path / "bert")
    empty = tmp_path / "empty"
    empty.mkdir()
    for model, more, message in (
        (tmp_path / "no", {}, "--model: expected a folder with a LLaVA model, got"),
        (empty, {}, "--model: .*empty cannot be loaded: "),
        (encoder, {}, "--model: expected a LLaVA model, .* is of type bert"),
        (folder, {"max_length": 5}, "--max-length: expected 1 to 5 tokens with an answer, got 9"),
        (folder, {"epochs": 0}, "--epochs: expected 1 to 10000, got 0"),
        (folder, {"step_size": 0.0}, "--step-size: expected above 0 and below 10, got 0.0"),
        (folder, {"template": "{image}"}, "--template: expected {question} once in it"),
        (folder, {"config": MrtConfig(vision_rank=20)}, "--model: .*at most the width 16, got 20"),
    ):
        with pytest.raises(UserError, match=message):
            train(model, data, out, **more)
    options = ["--model", folder, "--data", data, "-o", out, "--length", "-1"]
    found = CliRunner().invoke(app, ["train", *map(str, options)])
    assert "--length: expected a number of tokens from 0, got -1" in str(found.exception)
