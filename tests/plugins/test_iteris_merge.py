"""The command `merge`: three kinds of base, bad input, a kill, Ctrl-C, a full disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pyext_plugins.iteris import base, command, samples
from pyext_plugins.iteris.adapters import load_adapter
from pyext_plugins.iteris.app import app
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pyext.errors import UserError
from tests.plugins import merging
from tests.plugins.merging import peft, transformers

RUN = "from pyext_plugins.iteris.app import app; app()"
FILES = ["adapter_config.json", "adapter_model.safetensors", "report.json", "residuals.png"]


def merge(arguments, *more):
    done = CliRunner().invoke(app, [*arguments[1:], *more], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads((out_of(arguments) / "report.json").read_text())


def out_of(arguments):
    return Path(arguments[arguments.index("-o") + 1])


def fingerprints(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def case(tmp_path):
    return merging.make_case("bert", tmp_path)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("more", [(), ("--target", "full", "--rank", "5")])
def test_peft_loads_the_result(kind, more, tmp_path):
    arguments = merging.make_case(kind, tmp_path)
    before = fingerprints(tmp_path)
    report = merge(arguments, *more)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert {path: before[path] for path in before} == {
        path: content for path, content in fingerprints(tmp_path).items() if path in before
    }
    merged = load_adapter(out)
    assert merged.base == "tiny"
    assert set(merged.modules) == set(load_adapter(tmp_path / "a").modules)
    model = peft.PeftModel.from_pretrained(merging.base(kind), out)
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            delta = module.get_delta_weight("default")
            delta = delta.T if kind == "gpt2" else delta
            wanted = merged.modules[name].delta().float()
            torch.testing.assert_close(delta, wanted, atol=1e-5, rtol=1e-4)
    rows = {row["module"]: row for row in report["rows"]}
    assert set(rows) == set(merged.modules)
    lacking = report["facts"]["without an update"]
    assert list(lacking) == ["b"] and set(lacking["b"]) < set(rows)
    ranks = {rows[name]["rank"] for name in lacking["b"]}, {row["rank"] for row in report["rows"]}
    assert ranks == (({5}, {5}) if more else ({4}, {4, 6}))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_one_adapter_alone_gives_its_outputs(kind, tmp_path):
    arguments = merging.make_case(kind, tmp_path, count=40)
    place = arguments.index("--adapter", arguments.index("--adapter") + 1)
    merge(arguments[:place], "--alpha", "1e-7")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    texts = samples.read_samples(tmp_path / "a.jsonl")
    config = merging.base(kind).config
    found = []
    for folder in ("a", "out"):
        model = peft.PeftModel.from_pretrained(merging.base(kind), tmp_path / folder)
        with torch.no_grad():
            (batch,) = samples.make_batches(texts, tokenizer, 64, 64, config)
            found.append(model(**batch.inputs)[0][batch.masks[-1]])
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-3)


def killed_once(arguments, wait_for, number):
    """Run the command in a process of its own, and end it when the files are there."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments[1:]],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ},
        text=True,
    )
    while not wait_for.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    return process.communicate()[1], process.returncode


# Every step writes a checkpoint and then waits, for the signal to find it.
SLOW = """
import time
from pyext_plugins import session
from pyext_plugins.iteris import merging
session.CHECKPOINT_SECONDS, session.SAVING_SHARE = 0.0, 1.0
own = merging.Merging.advance
def advance(self):
    if self.step == 1:
        time.sleep(0.5)
    return own(self)
merging.Merging.advance = advance
"""


def test_a_killed_merger_goes_on_to_the_same_bytes(case, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "RUN", SLOW + RUN)
    work = tmp_path / ".out.work" / "checkpoint.safetensors"
    told, code = killed_once(case, work, signal.SIGKILL)
    assert code == -signal.SIGKILL, told
    assert work.exists() and not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, case[1:], catch_exceptions=False)
    assert done.exit_code == 0 and "resuming at step 1 of 2" in done.stderr
    assert not work.parent.exists()
    resumed = fingerprints(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    merge(case)
    assert fingerprints(tmp_path / "out") == resumed


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    case = merging.make_case("gpt2", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "RUN", SLOW + RUN)
    work = tmp_path / ".out.work" / "checkpoint.safetensors"
    told, code = killed_once(case, work, signal.SIGINT)
    assert code == 130 and "; the same command goes on" in told
    assert work.exists() and not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="holds a fit of .*alpha 0.0001.*alpha 0.1"):
        merge(case, "--alpha", "0.1")
    merge(case)


def test_a_full_disk_loses_nothing(case, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    before = fingerprints(tmp_path)
    monkeypatch.setattr(command, "save_residuals", full)
    with pytest.raises(UserError, match=r"--output: cannot write to .*out: .*No space left"):
        merge(case)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.work" / "checkpoint.safetensors").exists()
    monkeypatch.undo()
    merge(case)
    assert all(path.read_bytes() == content for path, content in before.items())
    with pytest.raises(UserError, match="out exists already; choose another name"):
        merge(case)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_a_base_left_on_disk_gives_the_same_bytes(kind, tmp_path, monkeypatch):
    arguments = merging.make_case(kind, tmp_path)
    merge(arguments, "--target", "full", "--rank", "4")
    whole = fingerprints(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    seen = []

    def load(base, stream=None):
        model = unpatched(base, stream)
        seen.extend(parameter.device.type for parameter in model.parameters())
        return model

    unpatched = base.Base.load
    monkeypatch.setattr(base.Base, "load", load)
    merge(arguments, "--target", "full", "--rank", "4", "--stream")
    assert set(seen) == {"meta"}
    assert fingerprints(tmp_path / "out") == whole


def test_iterating_and_resuming_give_the_report_of_the_rounds(case):
    report = merge(case, "--schedule", "iterate", "--rounds", "9", "--reg", "trace")
    assert report["facts"]["rounds"] == 3
    assert len(report["rows"]) == 4


@pytest.mark.parametrize(
    "more, message",
    [
        (["--alpha", "-1"], "--alpha: expected 0.0 to 1.0, got -1.0"),
        (["--rank", "0"], "--rank: expected 1 to 1000000, got 0"),
        (["--target", "ful"], "--target: expected delta, full, got 'ful'. Did you mean 'full'"),
        (["--products", "float16"], "--products: expected auto, float32, float64, got 'float16'"),
        (["--method", "iterisx"], "--method: expected iteris.*Did you mean 'iteris'"),
        (["--weight", "1"], "--weight: expected one for each of 2 adapters, got 1"),
        (["--weight", "1", "--weight", "0"], "--weight: expected numbers above 0, got 0.0"),
        (["--adapter", "{a}"], "--samples: expected one file for each of 3 adapters, got 2"),
        (["--adapter", "{a}", "--samples", "{a}.jsonl"], "--adapter: .*a is given twice"),
        (["--max-length", "0"], "--max-length: expected at least 1, got 0"),
    ],
)
def test_bad_options(case, tmp_path, more, message):
    more = [part.format(a=tmp_path / "a") for part in more]
    with pytest.raises(UserError, match=message):
        merge(case, *more)
    assert not (tmp_path / ".out.work").exists()


def change_weights(folder, change):
    path = next(iter(folder.glob("*.safetensors")))
    save_file(
        {key: change(key, tensor).contiguous() for key, tensor in load_file(path).items()}, path
    )


def test_bad_adapters_and_bases(case, tmp_path):
    merging.change_config(tmp_path / "b", base_model_name_or_path="x/other")
    with pytest.raises(UserError, match=r"expected one base, .*a is of 'tiny' and .*b of 'other'"):
        merge(case)
    merging.change_config(tmp_path / "b", base_model_name_or_path="here/tiny", revision="2")
    with pytest.raises(UserError, match="expected one revision of the base, .* of None and .*'2'"):
        merge(case)
    merging.change_config(tmp_path / "b", revision=None)
    whole = (tmp_path / "b" / "adapter_model.safetensors").read_bytes()
    change_weights(tmp_path / "b", lambda key, own: own[..., :9] if "lora_A" in key else own)
    with pytest.raises(UserError, match=r"query: its update is \[16, 9\], .* \[16, 16\]: it is of"):
        merge(case)
    change_weights(tmp_path / "b", lambda key, own: own * torch.nan)
    with pytest.raises(UserError, match="lora_A has numbers that are not finite"):
        merge(case)
    merging.lora("gpt2", 1, tmp_path / "b2")
    with pytest.raises(UserError, match="b2: the base .*base has no module transformer.h.0.attn"):
        merge([part + "2" if part == str(tmp_path / "b") else part for part in case])
    (tmp_path / "b" / "adapter_model.safetensors").write_bytes(whole)
    path = tmp_path / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="--base: .*base cannot be read: ") as raised:
        merge(case)
    assert "\n" not in str(raised.value)
    (tmp_path / "base" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="--base: expected a tokenizer in .*base: one of tokeniz"):
        merge(case)
    (tmp_path / "base" / "config.json").unlink()
    with pytest.raises(UserError, match="--base: expected a folder with config.json, got"):
        merge(case)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "expected at least one sample, got none"),
        (b'{"sentence": "x", "label": 1}', r'line 1: expected {"text": ...}, got fields sentence'),
        (b'\n{"text": ""}', "line 2: text: expected text, got ''"),
        (b'{"text": 3}', "line 1: text: expected text, got 3"),
        (b"text", "line 1: expected JSON: "),
        (b"[]", r"line 1: expected {.*, got \[\]"),
        (b"\xff", "is not UTF-8 text"),
        (b'{"text": "red", "target": "a"}\n{"text": "red"}', "in all lines or in none, got 1 in 2"),
    ],
)
def test_bad_samples(case, tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=f"--samples: .*a.jsonl.*{message}"):
        merge(case)


def test_samples_of_another_base(tmp_path):
    arguments = merging.make_case("t5", tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "red dog"}\n')
    with pytest.raises(UserError, match='an encoder-decoder needs lines with "text" and "target"'):
        merge(arguments)
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UserError, match="a.jsonl cannot be read: No such file"):
        merge(arguments)


def test_a_decoders_rows_are_told_from_its_encoders(tmp_path):
    merging.save_base("t5", tmp_path / "base")
    (tmp_path / "a.jsonl").write_text('{"text": "red dog runs", "target": "old cat sings"}\n')
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    config = merging.base("t5").config
    (batch,) = samples.make_batches(
        samples.read_samples(tmp_path / "a.jsonl"), tokenizer, 4, 8, config
    )
    assert [mask.shape[1] for mask in batch.masks] == [3, 4]
    x = torch.randn(1, 4, 5)
    assert torch.equal(batch.rows(x), x[0, :3])


def launched(arguments, count):
    """Run the command in several processes."""
    script = out_of(arguments).parent / "run.py"
    script.write_text(
        "from pyext.errors import UserError\nfrom pyext_plugins.iteris.app import app\n"
        "try:\n    app()\nexcept UserError as error:\n    raise SystemExit(f'told {error}')\n"
    )
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(script), *arguments[1:]],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        timeout=100,
    )
    return done.returncode, done.stderr


def test_two_processes_give_the_bytes_of_one(case, tmp_path):
    found = []
    for count in (1, 2):
        code, told = launched(case, count)
        assert code == 0, told
        found.append(fingerprints(tmp_path / "out"))
        shutil.rmtree(tmp_path / "out")
    assert found[0] == found[1]


def test_an_error_in_one_process_reaches_the_other(case, tmp_path):
    path = tmp_path / "base" / "model.safetensors"
    change_weights(path.parent, lambda key, own: own.fill_(torch.nan) if "value" in key else own)
    code, told = launched(case, 2)
    assert code != 0
    assert told.count("told a: what encoder.layer.0.attention.self.query or one beside it") == 2
