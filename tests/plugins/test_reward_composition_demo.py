"""The demo at a fraction of its size, and what it is built of."""

import itertools

import pytest
import torch

pytest.importorskip("matplotlib")

from pyext_plugins.reward_composition import METHOD, demo, study
from pyext_plugins.reward_composition.learning import (
    Settings,
    ppo_loss,
    reinforce_loss,
    standardised,
)
from pyext_plugins.reward_composition.policy import (
    GAINS,
    NAMES,
    TOKENS,
    WORDS,
    Policy,
    best_worst,
    equilibrium,
    score,
)

TINY = Settings(steps=3, batch=16)


def test_the_demo_reports_all_arms_claims_and_pictures(tmp_path):
    report = demo.run(tmp_path, TINY, 2)
    assert [row["arm"] for row in report.rows] == list(study.ARMS)
    assert len(report.pictures) == 2 and all(path.exists() for path in report.pictures.values())
    assert all(claim.measured is not None for claim in report.claims)
    held = {claim.text: claim.held for claim in report.claims}
    # Three steps fall short of the best possible, and are said to.
    assert not held["lowest reward off the best possible, mirror, 0.2, most of all seeds"]
    assert held["weights' sum off 1, most of all steps"]
    assert held[
        "numbers of policy, weights and rewards that differ between lambda 0 and fixed weights"
    ]
    report.save(tmp_path / "report.json")
    assert METHOD.demo == "pyext_plugins.reward_composition.demo:demo"


def test_a_training_is_decided_by_its_seed():
    arm = study.ARMS[study.MIRROR]
    torch.manual_seed(0)
    first = study.run(arm, TINY, 1)
    torch.manual_seed(1)
    second, other = study.run(arm, TINY, 1), study.run(arm, TINY, 2)
    assert torch.equal(first.means, second.means) and not torch.equal(first.means, other.means)
    for one, same in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(one, same)


def test_the_weights_move_to_the_reward_that_is_lowest():
    found = study.run(study.ARMS[study.MIRROR], Settings(steps=5, batch=64), 0)
    expected = (-0.2 * found.means.cumsum(0)).softmax(1)
    torch.testing.assert_close(found.weights, expected, atol=1e-6, rtol=1e-6)


def test_the_best_lowest_reward_is_exact():
    """No split of many tokens among the rewards has a higher lowest one."""
    assert best_worst() == pytest.approx(0.2553, abs=5e-5)
    parts = 235  # of tokens: 60, 75 and 100 of them are the equilibrium
    lowest = max(
        min(gain * count / parts for gain, count in zip(GAINS, (a, b, parts - a - b), strict=True))
        for a, b in itertools.product(range(parts), repeat=2)
        if a + b <= parts
    )
    assert lowest == pytest.approx(best_worst(), abs=1e-12)
    # At these weights every token is worth the same.
    worth = [weight * gain for weight, gain in zip(equilibrium(), GAINS, strict=True)]
    assert sum(equilibrium()) == pytest.approx(1) and max(worth) == pytest.approx(min(worth))


def test_a_token_serves_one_reward():
    words = torch.arange(WORDS).repeat_interleave(TOKENS).view(WORDS, TOKENS)
    found = score(words)
    assert ((found > 0).sum(1) == 1).all()
    assert found.amax(0).tolist() == pytest.approx(list(GAINS)) and found.shape[1] == len(NAMES)


def test_samples_come_with_the_probability_that_is_said():
    torch.manual_seed(0)
    policy = Policy()
    words = policy.sample(4096, torch.Generator().manual_seed(0))
    first = policy.log_probability(torch.arange(WORDS).unsqueeze(1).expand(-1, TOKENS))[:, 0].exp()
    assert first.sum().item() == pytest.approx(1, abs=1e-5)
    share = torch.bincount(words[:, 0], minlength=WORDS) / len(words)
    # Standard deviation of a share: 0.005 at most here; five of them.
    torch.testing.assert_close(share, first, atol=0.025, rtol=0)


def test_ppo_starts_as_reinforce_and_stops_at_its_clip():
    log_p = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    advantage = standardised(torch.randn(6, dtype=torch.float64))
    (first,) = torch.autograd.grad(reinforce_loss(log_p, advantage), log_p)
    (second,) = torch.autograd.grad(ppo_loss(log_p, log_p.detach(), advantage, 0.2), log_p)
    torch.testing.assert_close(first, second)
    # Gone beyond the clip in the direction of its advantage, a token has no gradient.
    old = log_p.detach() - advantage.sign().unsqueeze(1)
    (third,) = torch.autograd.grad(ppo_loss(log_p, old, advantage, 0.2), log_p)
    assert not third.any()
