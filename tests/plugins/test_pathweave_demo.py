"""The demo of pathweave, at a fraction of its size: its claims are its own to keep."""

import pytest
import torch

from tests.plugins import pathweave_models  # noqa: F401

pytest.importorskip("sklearn")

from pyext_plugins.pathweave.demo import arms, run, views  # noqa: E402


@pytest.fixture(scope="module")
def found():
    return views.load_views()


def test_the_views_are_those_of_the_card(found):
    tokens = {name: view.train.features.shape[1] for name, view in found.items()}
    assert tokens == {"image": 16, "video": 24, "audio": 8, "depth": 16, "pc": 24}
    for view in found.values():
        assert view.train.features.shape[::2] == (1297, 64) and len(view.test.labels) == 500
        assert view.train.features.isfinite().all()
        assert torch.equal(view.train.labels, found["image"].train.labels)
        assert len(view.labelled(0).labels) == 400
    again = views.load_views()
    assert all(torch.equal(found[n].test.features, again[n].test.features) for n in found)


def test_the_arms_have_the_sizes_of_the_card():
    base = arms.Reader()
    # The card's has no LayerNorm before its first block.
    assert sum(parameter.numel() for parameter in base.parameters()) == 101_642 + 2 * 64
    learner = arms.make(arms.WOVEN, base, "image")
    for view in ("video", "audio"):
        learner.learn(view)
    assert len(learner.reader.paths.sites) == 16
    trained = sum(p.numel() for p in learner.reader.parameters() if p.requires_grad)
    own = 4 * 64 + 4 + 4 * 64 + 64 + 1
    assert trained == 16 * (own + 4 * 4 + 4 + 2 * 64 * 2)


def test_the_demo_reports_claims_and_a_picture(found, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "load_views", lambda: found)
    report = run.run(tmp_path, (0,), run.Size(base=20, short=4, long=4))
    assert [row["arm"] for row in report.rows] == [*arms.ARMS, *arms.PATHS]
    assert all(path.exists() for path in report.pictures.values())
    claims = {claim.text: claim for claim in report.claims}
    assert len(claims) == 5
    exact = [claim for text, claim in claims.items() if text.startswith("separate paths: ")]
    assert len(exact) == 2 and all(claim.held for claim in exact)
    apart = next(claim for text, claim in claims.items() if text.startswith("one pass over all"))
    assert apart.held
    assert "After 4 steps the gate is " in capsys.readouterr().out
    report.save(tmp_path / "report.json")


def test_tuning_all_weights_changes_earlier_outputs(found):
    base = arms.make_base(found["image"], 0, steps=10)
    learned = arms.learn(arms.SEQUENTIAL, base, found, ("image", "video"), 3, 0)
    assert learned.changed > 0
