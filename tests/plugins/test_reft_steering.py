"""Steering tokens to the content of a class."""

import pytest
import torch
from pyext_plugins.reft.config import ReftConfig
from pyext_plugins.reft.model import Editor
from pyext_plugins.reft.steering import Aim, aim, steer

from tests.plugins.reft_models import IMAGE, PATCHES, llama, llava, perturb, tokens
from tests.plugins.side_models import HIDDEN

PATH = "model.layers.1"
INPUTS = tokens([5, 7])
WHERE = torch.zeros(2, 7, dtype=torch.bool)
WHERE[0, 2] = WHERE[1, [0, 6]] = True


def states(model, **inputs):
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states[2]


def random_aim():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    return aim(torch.randn(30, HIDDEN, generator=generator) + labels[:, None], labels, 1)


def test_the_aim_is_the_mean_of_the_class():
    labels = torch.arange(40) % 4
    found = torch.randn(40, HIDDEN, generator=torch.Generator().manual_seed(0))
    R, target = aim(found, labels, 2)
    assert R.shape == (3, HIDDEN) and (R @ R.T - torch.eye(3)).abs().max() < 1e-5
    means = torch.stack([found[labels == label].mean(0) for label in range(4)])
    torch.testing.assert_close(target, R @ means[2])
    moved = means + (target - means @ R.T) @ R  # all class means come to the wanted one's
    torch.testing.assert_close(moved, means[2].expand_as(moved), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 0.25, 0.0])
def test_the_content_moves_at_the_chosen_tokens_alone(strength):
    model, to = llama(), random_aim()
    before = states(model, **INPUTS)
    with steer(model, PATH, to, WHERE, strength):
        after = states(model, **INPUTS)
    assert torch.equal(states(model, **INPUTS), before)
    assert torch.equal(after[~WHERE], before[~WHERE])
    old, new = before[WHERE], after[WHERE]
    wanted = old @ to.R.T + strength * (to.target - old @ to.R.T)
    torch.testing.assert_close(new @ to.R.T, wanted, rtol=1e-4, atol=1e-5)
    outside = torch.eye(HIDDEN) - to.R.T @ to.R
    torch.testing.assert_close(new @ outside, old @ outside, rtol=1e-4, atol=1e-5)


def test_steering_goes_with_editors_and_with_generating():
    model, to = llama(), random_aim()
    perturb(Editor(model, ReftConfig(rank=2, layers=(0,))))
    inputs = tokens([7, 7])
    greedy = {"do_sample": False, "max_new_tokens": 3, "min_new_tokens": 3}
    plain = model.generate(**inputs, **greedy)
    far = Aim(to.R, to.target + 20)
    with steer(model, PATH, far, torch.ones(2, 7, dtype=torch.bool)):
        steered = model.generate(**inputs, **greedy)
        assert torch.equal(steered[:, 7], model(**inputs).logits[:, -1].argmax(-1))
    assert not torch.equal(plain, steered)


def test_a_vision_block_can_be_steered():
    model, to = llava(), random_aim()
    path = "model.vision_tower.encoder.layers.1"
    call = {"pixel_values": torch.rand(1, 3, 8, 8), "input_ids": torch.tensor([[IMAGE] * PATCHES])}
    before = model(**call).logits
    where = torch.zeros(1, PATCHES + 1, dtype=torch.bool)
    where[0, 2] = True
    with steer(model, path, to, where):
        assert not torch.equal(model(**call).logits, before)


def test_bad_aims_are_named():
    with pytest.raises(ValueError, match=r"states, labels: expected \[n, D\] and \[n\], got \[4\]"):
        aim(torch.zeros(4), torch.zeros(4), 0)
    with pytest.raises(ValueError, match=r"wanted: expected one of several classes, got 3 of \[0"):
        aim(torch.randn(4, 8), torch.tensor([0, 1, 0, 1]), 3)
    with pytest.raises(ValueError, match="X: matrix 0 is not finite, or its rows are dependent"):
        aim(torch.ones(4, 8), torch.tensor([0, 1, 0, 1]), 0)
    model, to = llama(), random_aim()
    with (
        pytest.raises(ValueError, match="path: LlamaForCausalLM has no 'layers.1'"),
        steer(model, "layers.1", to, WHERE),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"where: expected \[B, S\].*\[1, 4\], got \[2, 7\]"),
        steer(model, PATH, to, WHERE),
    ):
        model(torch.tensor([[1, 2, 3, 4]]))
