"""The demo, at a fraction of its size: its claims are its to keep."""

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("peft")

from pyext_plugins.mrt import demo, digits
from pyext_plugins.mrt.arms import ARMS, MRT, TEXT_AS_MANY, TEXT_ONLY, UNTOUCHED, VISION_ONLY


def test_the_demo_reports_claims_and_a_picture(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "SEEDS", 1)
    monkeypatch.setattr(digits, "MOST_STEPS", 2)
    monkeypatch.setattr(digits, "CHECK_EVERY", 2)
    monkeypatch.setattr(digits, "BATCH", 8)
    monkeypatch.setattr(digits.fit, "__defaults__", (6,))
    report = demo.demo(tmp_path)
    assert [row["arm"] for row in report.rows] == [UNTOUCHED, *ARMS]
    assert all(path.exists() for path in report.pictures.values())
    claims = {claim.text: claim for claim in report.claims}
    for text in (
        "logits that editors change before the first step",
        "R R^T off the identity after training, at most",
        "tokens edited that should not be, or not that should",
        "parameters of frozen bases with a gradient",
    ):
        assert claims[text].held, text
    assert any(claim.held is False for claim in report.claims)  # not trained, so not good
    report.save(tmp_path / "report.json")


def test_arms_have_the_sizes_of_the_card():
    sizes = {
        "LoRA, rank 2": 2048,
        "LoRA, rank 1": 1024,
        MRT: 2580,
        "MRT V+P/S": 2064,
        VISION_ONLY: 1032,
        "MRT C": 516,
        TEXT_ONLY: 1032,
        TEXT_AS_MANY: 2580,
    }
    base = digits.make_model(0)
    for arm, size in sizes.items():
        model = ARMS[arm].build(base, 0)
        assert sum(own.numel() for own in model.parameters() if own.requires_grad) == size, arm


def test_the_shifted_instruction_is_another():
    data = digits.load_digits()
    picture, shifted = data.digit.pictures[0, 0], data.shifted.pictures[0, 0]
    assert torch.equal(shifted, -picture.flip(0))
    assert data.shifted.answers[0] - digits.DIGITS == 9 - (data.digit.answers[0] - digits.DIGITS)
    words = [task.inputs()["input_ids"][0, -8:-1] for task in (data.digit, data.parity, data.test)]
    assert len(torch.cat(words).unique()) == 3 * digits.QUESTION
    assert len(data.held_out.answers) == len(data.test.answers) == digits.TESTED
