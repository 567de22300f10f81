"""Weights in TRL's trainers, on a transformers model of random weights."""

import json

import pytest
import torch

pytest.importorskip("trl")
from pyext_plugins.reward_composition.compose import compose_rewards
from pyext_plugins.reward_composition.trainers import attach
from pyext_plugins.reward_composition.weights import RewardWeights

from tests.plugins.reward_trainers import NAMES, make

LAM = 2.0


def logged(trainer, form):
    """[steps, n], of the training's log."""
    lines = [line for line in trainer.state.log_history if form.format("low") in line]
    return torch.tensor([[line[form.format(name)] for name in NAMES] for line in lines]).double()


def check_course(trainer, weights, lam=LAM):
    """Logged weights are the closed form of logged means, those of the batch they compose."""
    means = logged(trainer, "rewards/{}/mean")
    found = logged(trainer, "reward_weights/{}")
    torch.testing.assert_close(found, (-lam * means.cumsum(0)).softmax(1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found[-1], weights.weights, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(trainer.reward_weights.double(), found[-1], atol=1e-6, rtol=1e-6)
    return means, found


@pytest.mark.parametrize("order", ["sum_then_normalize", "normalize_then_sum"])
def test_grpo_moves_the_weights_to_the_lowest_reward(tmp_path, order):
    trainer = make(tmp_path, multi_objective_aggregation=order)
    weights = RewardWeights(NAMES, LAM)
    attach(trainer, weights)
    trainer.train()
    means, found = check_course(trainer, weights)
    assert len(found) == 3 == weights.step
    lowest = means.mean(0).argmin()
    assert (found[:, lowest].diff() > 0).all() and found[0, lowest] > 1 / 3
    # The advantages of the last batch are those of the pure functions.
    scores = torch.tensor([list(trainer._logs["rewards"][name]) for name in NAMES]).T
    assert scores.isnan().any()
    expected = compose_rewards(scores, weights.log_w, group=4, mode="fixed", order=order)
    advantages = torch.tensor(list(trainer._logs["advantages"]))
    torch.testing.assert_close(advantages, expected.advantage, atol=1e-4, rtol=1e-4)


def test_weights_move_once_for_a_batch_and_not_in_evaluation(tmp_path):
    trainer = make(tmp_path, num_iterations=2, max_steps=4)
    weights = RewardWeights(NAMES, LAM)
    attach(trainer, weights)
    trainer.train()
    assert weights.step == 2
    before = weights.state_dict()
    found = trainer.evaluate()
    assert weights.state_dict() == before
    assert found["eval_reward_weights/rare"] == pytest.approx(float(weights.weights[1]))


def test_rloo_works_the_same(tmp_path):
    trainer = make(tmp_path, "RLOO", beta=0.05)
    weights = RewardWeights(NAMES, LAM)
    attach(trainer, weights)
    trainer.train()
    _, found = check_course(trainer, weights)
    assert len(found) == 3


@pytest.mark.parametrize("restore_callbacks", [False, True])
def test_a_training_goes_on_with_the_weights_of_its_checkpoint(tmp_path, restore_callbacks):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole, weights = make(tmp_path, **saving), RewardWeights(NAMES, LAM)
    attach(whole, weights)
    whole.train()
    more = {"restore_callback_states_from_checkpoint": restore_callbacks}
    second, resumed = make(tmp_path / "again", **saving, **more), RewardWeights(NAMES, lam=0.01)
    attach(second, resumed)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.step == 4
    check_course(second, resumed)
    assert resumed.state_dict() == weights.state_dict()
    state = json.loads((tmp_path / "again" / "checkpoint-4" / "trainer_state.json").read_text())
    saved = state["stateful_callbacks"]["RewardWeightsCallback"]["reward_weights"]
    assert saved == resumed.state_dict()
    with pytest.raises(ValueError, match="state: expected mode 'softmax', got 'mirror'"):
        other = make(tmp_path / "other", **saving)
        attach(other, RewardWeights(NAMES, LAM, mode="softmax"))
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_checkpoint_without_weights_is_gone_on_from(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    make(tmp_path, **saving, max_steps=1).train()
    trainer, weights = make(tmp_path, **saving, max_steps=2), RewardWeights(NAMES, LAM)
    attach(trainer, weights)
    trainer.train(resume_from_checkpoint=True)
    assert weights.step == 1
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert "RewardWeightsCallback" in state["stateful_callbacks"]


def test_trainers_and_weights_that_do_not_fit_are_refused(tmp_path):
    trainer = make(tmp_path)
    with pytest.raises(
        ValueError, match=r"weights: expected the names \['low', 'rare', 'sometimes"
    ):
        attach(trainer, RewardWeights(NAMES[::-1]))
    with pytest.raises(ValueError, match="weights: mode 'min' takes another reward for each"):
        attach(trainer, RewardWeights(NAMES, mode="min"))
    with pytest.raises(TypeError, match="trainer: expected a GRPOTrainer or RLOOTrainer of trl"):
        attach(object(), RewardWeights(NAMES))
    before = trainer.reward_weights
    attach(trainer, RewardWeights(NAMES))
    assert before.tolist() == [1, 1, 1] and trainer.reward_weights.sum().item() == pytest.approx(1)
    with pytest.raises(ValueError, match="trainer: its scoring is replaced already"):
        attach(trainer, RewardWeights(NAMES))
