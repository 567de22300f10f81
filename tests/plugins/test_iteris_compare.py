"""`pyext iteris compare` and, by the same names, the peers in `pyext iteris merge`."""

import json
from types import SimpleNamespace

import pytest
import torch
from pyext_plugins.iteris.adapters import load_adapter
from pyext_plugins.iteris.app import app
from pyext_plugins.iteris.applied import applied
from pyext_plugins.iteris.compare.run import METHODS
from pyext_plugins.iteris.peers import PEERS
from typer.testing import CliRunner

from pyext.errors import UserError
from tests.plugins import merging

METRIC = '''
"""How far hidden states are from the base's first call, by task; counts its calls."""
import os
import pathlib
import signal
import torch

def score(model, tokenizer):
    with open(pathlib.Path(__file__).with_suffix(".calls"), "a") as calls:
        calls.write("x")
    ids = torch.tensor([tokenizer("red dog sleeps")["input_ids"]])
    hidden = model(input_ids=ids).last_hidden_state
    return {"first": float(hidden.mean()), "second": float(hidden.std())}

def text(model, tokenizer):
    return "good"

def changing(model, tokenizer, seen=[]):
    seen.append(1)
    return {f"task{len(seen)}": 1.0}

def failing(model, tokenizer):
    raise KeyError("label")

def interrupting(model, tokenizer):
    if pathlib.Path(__file__).with_suffix(".calls").exists():
        return score(model, tokenizer)
    os.kill(os.getpid(), signal.SIGINT)
    return score(model, tokenizer)

def endless(model, tokenizer):
    return {"first": float("nan")}

number = 3
'''


@pytest.fixture
def pyext():
    """Run a command of the app: exit code, what was printed, and what was wrong."""

    def run(name, *arguments):
        done = CliRunner().invoke(app, [str(own) for own in arguments])
        if isinstance(done.exception, UserError):
            return SimpleNamespace(code=2, out=done.output, err=str(done.exception))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return SimpleNamespace(code=done.exit_code, out=done.output, err="")

    return run


@pytest.fixture
def case(tmp_path):
    """Arguments of `compare` but for the metric, and the folder they are in."""
    arguments = merging.make_case("bert", tmp_path)
    arguments[1] = "compare"
    (tmp_path / "metric.py").write_text(METRIC)
    return arguments, tmp_path


def metric(folder, name="score"):
    return "--metric", f"{folder / 'metric.py'}:{name}"


def calls(folder):
    path = folder / "metric.calls"
    return len(path.read_text()) if path.exists() else 0


def test_all_methods_are_scored_and_kept(pyext, case):
    arguments, folder = case
    done = pyext(*arguments, *metric(folder))
    assert done.code == 0, done.err
    out = folder / "out"
    report = json.loads((out / "report.json").read_text())
    rows = {row["method"]: row for row in report["rows"]}
    skipped = report["facts"]["not run"]
    assert [*rows][:3] == ["base", "a alone", "b alone"]
    assert {*rows, *skipped} == {"base", "a alone", "b alone", *METHODS}
    # The adapters are of two ranks, which these ways of peft cannot merge.
    assert skipped and all("same r value" in reason for reason in skipped.values())
    assert "peft-linear" in skipped and "not run: peft-linear" in done.out
    assert all(row["mean"] == (row["first"] + row["second"]) / 2 for row in rows.values())
    assert (out / "scores.png").stat().st_size > 1000
    kept = {path.name for path in (out / "adapters").iterdir()}
    assert kept == set(METHODS) - set(skipped)


def test_a_score_is_of_the_adapter_that_is_kept(pyext, case):
    arguments, folder = case
    pyext(*arguments, *metric(folder), "--method", "mean")
    (row,) = [
        row
        for row in json.loads((folder / "out" / "report.json").read_text())["rows"]
        if row["method"] == "mean"
    ]
    whole = merging.peft.PeftModel.from_pretrained(
        merging.base("bert"), folder / "out" / "adapters" / "mean"
    ).eval()
    tokenizer = merging.transformers.AutoTokenizer.from_pretrained(folder / "base")
    ids = torch.tensor([tokenizer("red dog sleeps")["input_ids"]])
    with torch.no_grad():
        hidden = whole(input_ids=ids).last_hidden_state
    assert row["first"] == pytest.approx(float(hidden.mean()), abs=1e-5)
    assert row["second"] == pytest.approx(float(hidden.std()), abs=1e-5)


def test_methods_that_are_done_stay(pyext, case):
    arguments, folder = case
    first = (*arguments, *metric(folder), "--method", "mean")
    assert pyext(*first).code == 0
    before, scored = (folder / "out" / "report.json").read_bytes(), calls(folder)
    assert pyext(*first).code == 0
    assert (folder / "out" / "report.json").read_bytes() == before
    assert calls(folder) == scored  # nothing was scored again
    assert pyext(*first, "--method", "task-arithmetic").code == 0
    assert calls(folder) == scored + 1


def test_ctrl_c_ends_after_the_method_and_the_same_command_goes_on(pyext, case):
    arguments, folder = case
    own = (*arguments, *metric(folder, "interrupting"), "--method", "mean")
    done = pyext(*own)
    assert done.code == 130
    assert [path.name for path in (folder / "out" / "records").iterdir()] == ["base.json"]
    assert calls(folder) == 1 and not (folder / "out" / "report.json").exists()
    assert pyext(*own).code == 0
    assert calls(folder) == 4  # two adapters alone and the mean; the base was done


def test_an_adapter_left_without_its_score_is_made_anew(pyext, case):
    arguments, folder = case
    own = (*arguments, *metric(folder), "--method", "mean")
    pyext(*own)
    (folder / "out" / "records" / "mean.json").unlink()
    weights = folder / "out" / "adapters" / "mean" / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(b"cut off")
    assert pyext(*own).code == 0
    assert weights.read_bytes() == before


def test_another_comparison_is_not_mixed_in(pyext, case):
    arguments, folder = case
    pyext(*arguments, *metric(folder), "--method", "mean")
    done = pyext(*arguments, *metric(folder), "--method", "mean", "--seed", "3")
    assert done.code == 2
    assert "holds a comparison of other inputs (settings)" in done.err.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "has no function 'missing'"),
        ("scor", "Did you mean 'score'?"),
        ("number", "has no function 'number'"),
        ("text", "to return a dict of task name to number, got 'good'"),
        ("changing", "expected the same tasks each time, task1; got task2"),
        ("failing", "fails: KeyError: 'label'"),
        ("endless", "first: nan is not finite"),
    ],
)
def test_a_bad_metric_is_one_clear_error(pyext, case, name, message):
    arguments, folder = case
    done = pyext(*arguments, *metric(folder, name), "--method", "mean")
    assert done.code == 2
    assert message in " ".join(done.err.split())


def test_a_metric_file_that_does_not_run_is_named(pyext, case):
    arguments, folder = case
    (folder / "metric.py").write_text("import a_module_that_is_not_there")
    done = pyext(*arguments, *metric(folder))
    assert done.code == 2 and "does not run: ModuleNotFoundError" in " ".join(done.err.split())
    done = pyext(*arguments, "--metric", "nowhere.py:score")
    assert done.code == 2 and "expected a Python file, nowhere.py" in " ".join(done.err.split())
    done = pyext(*arguments, "--metric", "score")
    assert done.code == 2 and "expected FILE.py:function, got 'score'" in " ".join(done.err.split())


def test_an_unknown_method_is_refused_before_any_work(pyext, case):
    arguments, folder = case
    done = pyext(*arguments, *metric(folder), "--method", "means")
    assert done.code == 2 and "Did you mean 'mean'?" in " ".join(done.err.split())
    assert not (folder / "out").exists() and calls(folder) == 0


def test_a_folder_of_the_users_is_left_alone(pyext, case):
    arguments, folder = case
    (folder / "out").mkdir()
    (folder / "out" / "mine.txt").write_text("mine")
    done = pyext(*arguments, *metric(folder), "--method", "mean")
    assert done.code == 2 and "already holds mine.txt" in " ".join(done.err.split())
    assert [path.name for path in (folder / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", [name for name in PEERS if name != "soup-greedy"])
def test_a_peer_merges_by_the_command_merge(pyext, tmp_path, name):
    arguments = merging.make_case("bert", tmp_path)
    done = pyext(*arguments, "--method", name)
    if name.startswith("peft-") and not name.endswith(("svd", "cat")):
        assert done.code == 2 and "same r value" in " ".join(done.err.split())
        return
    assert done.code == 0, done.err
    merged = load_adapter(tmp_path / "out")
    assert set(merged.modules) == set(load_adapter(tmp_path / "a").modules)
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert all(0 <= row["residual"] < 10 for row in rows)


def test_a_greedy_soup_by_the_command_merge_asks_for_a_metric(pyext, tmp_path):
    done = pyext(*merging.make_case("bert", tmp_path), "--method", "soup-greedy")
    assert done.code == 2 and "soup-greedy: expected a metric" in " ".join(done.err.split())


def test_a_model_is_left_without_updates(tmp_path):
    model, ids = merging.base("bert"), torch.ones(1, 4, dtype=torch.long)
    before = model(input_ids=ids).last_hidden_state
    updates = load_adapter(merging.lora("bert", 1, tmp_path / "a")).modules
    with pytest.raises(KeyError), applied(model, updates):
        assert not torch.equal(model(input_ids=ids).last_hidden_state, before)
        raise KeyError
    assert torch.equal(model(input_ids=ids).last_hidden_state, before)
