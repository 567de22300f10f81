"""Diff-II's demo at a fraction of its size: its claims are its own to keep."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("sklearn")

from pyext_plugins.diffii import arms, classifier, demo, generator, measures, speed
from pyext_plugins.diffii.digits import CLASSES, Digits, Pictures
from pyext_plugins.diffii.study import Size

TINY = Size(
    draws=((2, 0), (3, 1)), seeds=1, concept_steps=1, inversion_steps=2, steps=2, classifier_steps=2
)


def test_the_demo_reports_all_arms_claims_and_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "IMAGES", 2)
    monkeypatch.setattr(speed, "STEPS", 1)
    report = demo.run(tmp_path, TINY, 1, 1)
    assert [row["arm"] for row in report.rows] == list(arms.ARMS)
    assert all(path.exists() for path in report.pictures.values())
    assert len(report.pictures) == len(arms.ARMS) + 1
    assert all(claim.measured is not None for claim in report.claims)
    # An untrained generator does not know the classes, and the gate says so.
    assert [c.held for c in report.claims if c.text.startswith("gate")] == [False]
    report.save(tmp_path / "report.json")


def test_the_generator_is_trained_once(tmp_path, monkeypatch):
    digits = Digits()
    first = demo.train(digits, tmp_path / "generator", 1, 1)
    monkeypatch.setattr(generator.Training, "advance", None)
    second = demo.train(digits, tmp_path / "generator", 1, 1)
    for name, tensor in first.unet.state_dict().items():
        assert torch.equal(tensor, second.unet.state_dict()[name]), name
    draw, folder = digits.draw(2, 0), tmp_path / "generator"
    taught = generator.taught(first.unet, digits, draw, 1, folder).state_dict()
    monkeypatch.setattr(generator, "learn_concepts", None)
    again = generator.taught(second.unet, digits, draw, 1, folder).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in taught.items())
    with pytest.raises(TypeError):  # of other steps: taught anew
        generator.taught(second.unet, digits, draw, 2, folder)


def test_the_generator_is_the_size_that_is_said():
    assert sum(p.numel() for p in generator.make_unet().parameters()) == 398_617


def test_draws_share_no_picture_between_training_and_test():
    digits = Digits()
    draw = digits.draw(5, 0)
    assert len(digits.pool) == 1000 and len(draw.train) == 50 and len(draw.test) == 747
    assert torch.bincount(draw.train.labels).tolist() == [5] * CLASSES
    assert torch.equal(draw.train.labels, draw.train.labels.sort().values)
    assert not torch.equal(draw.train.images, digits.draw(5, 1).train.images)


def test_synthetic_pictures_take_the_place_of_their_own_class():
    """A training whose synthetics of a class are all of one colour sees no other colour there."""
    labels = torch.arange(CLASSES).repeat_interleave(3)
    synthetic = Pictures(labels.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).float(), labels)
    asked = torch.randint(CLASSES, (1000,), generator=torch.Generator().manual_seed(0))
    images = classifier._replace(
        torch.full((1000, 1, 8, 8), -1.0), asked, synthetic, torch.Generator().manual_seed(1)
    )
    found = images[:, 0, 0, 0]
    replaced = found >= 0
    assert torch.equal(found[replaced].long(), asked[replaced])
    # Half of 1000, standard deviation 16: five of them.
    assert abs(int(replaced.sum()) - 500) < 80


def test_measures_are_what_they_say():
    labels = torch.arange(CLASSES).repeat_interleave(2)
    images = torch.zeros(len(labels), 1, 8, 8)
    images[1::2] = 1
    pictures = Pictures(images, labels)
    assert measures.diversity(pictures) == pytest.approx(8)  # sqrt(64)
    assert measures.novelty(pictures, pictures) == 0
    assert arms.norm_ratio(torch.ones(3, 1, 8, 8)) == pytest.approx(1)
    digits = Digits()
    assert measures.faithfulness(digits, digits.labelled) > 0.98


def test_a_shift_moves_by_one_pixel():
    draw = Digits().draw(2, 0)
    moved = arms.shifted(draw)
    for image, label, original in zip(
        moved.images, moved.labels, draw.train.images.repeat_interleave(5, 0), strict=True
    ):
        inner = original[:, 1:7, 1:7]
        places = ((0, 1), (2, 1), (1, 0), (1, 2))
        assert any(torch.equal(image[:, y : y + 6, x : x + 6], inner) for y, x in places), label
