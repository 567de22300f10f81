"""The step of the weights and the composition: closed forms, NaN, what is refused."""

import math

import pytest
import torch
from pyext_plugins.reward_composition.compose import compose_rewards, mirror_step
from torch import nan

THIRD = torch.full((3,), 1 / 3, dtype=torch.float64).log()
MEANS = torch.tensor([0.5, -0.2, 3.0], dtype=torch.float64)
SKEWED = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()


def test_a_step_is_the_formula():
    bias = torch.tensor([0.1, 0.0, -0.3], dtype=torch.float64)
    expected = SKEWED.exp() * (-0.7 * MEANS + bias).exp()
    found = mirror_step(MEANS, SKEWED, 0.7, bias).exp()
    torch.testing.assert_close(found, expected / expected.sum())


def test_a_step_is_the_least_of_its_objective():
    """lam <w, means> + KL(w || w_old) is higher at every other point of the simplex."""

    def objective(w):
        return 0.7 * (w * MEANS).sum(-1) + (w * (w.log() - SKEWED)).sum(-1)

    others = torch.distributions.Dirichlet(torch.ones(3, dtype=torch.float64)).sample((1000,))
    assert (objective(others) >= objective(mirror_step(MEANS, SKEWED, 0.7).exp()) - 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_add_up_to_a_softmax_of_what_was_earned(dtype):
    means = torch.randn(50, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    log_w = THIRD.to(dtype)
    for mean in means:
        log_w = mirror_step(mean, log_w, 0.3)
    assert log_w.dtype == dtype
    # 50 roundings of logarithms below 16: 50 * 8 eps at most.
    tolerance = 400 * torch.finfo(dtype).eps
    expected = (-0.3 * means.double().sum(0)).log_softmax(0)
    torch.testing.assert_close(log_w.double(), expected, atol=tolerance, rtol=0)


def test_a_constant_changes_nothing_and_steps_may_differ():
    torch.testing.assert_close(mirror_step(MEANS + 7, SKEWED, 0.4), mirror_step(MEANS, SKEWED, 0.4))
    twice = mirror_step(MEANS * torch.tensor([1.0, 2.0, 1.0]), SKEWED, 0.4)
    torch.testing.assert_close(twice, mirror_step(MEANS, SKEWED, [0.4, 0.8, 0.4]))


def test_a_step_of_zero_gives_the_bits_back():
    log_w = torch.randn(5, generator=torch.Generator().manual_seed(1)).log_softmax(0)
    found = mirror_step(torch.randn(5), log_w, 0.0)
    assert torch.equal(found, log_w) and found.data_ptr() != log_w.data_ptr()


def test_steps_far_beyond_exp_stay_finite():
    found = mirror_step(torch.tensor([0.0, 1e6, 2e6]), THIRD, 10.0)
    assert found.isfinite().all() and float(found.exp().sum()) == 1 and float(found[0]) == 0


def test_a_reward_without_value_keeps_its_weight():
    found = mirror_step(torch.tensor([0.5, nan, 3.0]), SKEWED, 1.0)
    assert found[1] == SKEWED[1]
    torch.testing.assert_close(found.exp().sum().item(), 1.0)
    torch.testing.assert_close((found[0] - found[2]).item(), math.log(0.2 / 0.5) + 2.5)
    assert torch.equal(mirror_step(torch.full((3,), nan), SKEWED, 1.0, floor=0.1), SKEWED)


def test_one_reward_keeps_the_weight_of_1():
    assert mirror_step(torch.tensor([3.3]), torch.zeros(1), 2.0).item() == 0


def test_floor_and_cap_hold_and_the_floor_is_the_formula():
    free = mirror_step(MEANS, SKEWED, 2.0).exp()
    floored = mirror_step(MEANS, SKEWED, 2.0, floor=0.1).exp()
    torch.testing.assert_close(floored, 0.7 * free + 0.1)
    for means in (MEANS, torch.tensor([0.0, 1e6, 2e6], dtype=torch.float64)):
        log_w = SKEWED
        for _ in range(20):
            log_w = mirror_step(means, log_w, 2.0, floor=0.05, cap=0.4)
            w = log_w.exp()
            assert w.min() >= 0.05 - 1e-12 and w.max() <= 0.4 + 1e-12
            torch.testing.assert_close(w.sum().item(), 1.0)


def test_what_the_cap_cuts_is_shared_in_proportion():
    w = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    found = mirror_step(torch.zeros(3), w.log(), 1.0, cap=0.4).exp()
    # 0.2 would go to 0.4 exactly, 0.1 to 0.2.
    torch.testing.assert_close(found, torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64))


def rewards(batch=8, seed=0):
    return torch.randn(batch, 3, generator=torch.Generator().manual_seed(seed))


def test_composition_uses_the_weights_it_led_to():
    r = rewards()
    found = compose_rewards(r, THIRD, 0.5)
    log_w = mirror_step(r.double().mean(0), THIRD, 0.5)
    assert torch.equal(found.log_w, log_w)
    torch.testing.assert_close(found.reward, r @ log_w.exp().float())
    expected = (found.reward - found.reward.mean()) / (found.reward.std() + 1e-4)
    torch.testing.assert_close(found.advantage, expected)


def test_softmax_has_no_memory_and_fixed_does_not_move():
    r = rewards()
    found = compose_rewards(r, SKEWED, 0.5, mode="softmax")
    torch.testing.assert_close(found.log_w, (-0.5 * r.double().mean(0)).log_softmax(0))
    assert torch.equal(compose_rewards(r, SKEWED, 0.5, mode="fixed").log_w, SKEWED)
    none = torch.tensor([0.0, 0.4, 0.6]).log()  # fixed weights may be 0
    torch.testing.assert_close(
        compose_rewards(r, none, mode="fixed").reward, r @ torch.tensor([0.0, 0.4, 0.6])
    )


def test_the_minimum_is_of_each_sample():
    r = torch.tensor([[1.0, 2.0, 3.0], [nan, 5.0, 4.0], [nan, nan, nan]])
    found = compose_rewards(r, THIRD, mode="min", scale="none")
    assert found.reward[:2].tolist() == [1.0, 4.0] and found.reward[2].isnan()


def test_groups_and_scales():
    r = rewards()
    reward = r.mean(1)
    for scale in ("group", "batch", "none"):
        found = compose_rewards(r, THIRD, mode="fixed", group=4, scale=scale).advantage
        for part in (slice(0, 4), slice(4, 8)):
            own = reward[part]
            by = {"group": own.std() + 1e-4, "batch": reward.std() + 1e-4, "none": 1.0}[scale]
            torch.testing.assert_close(found[part], (own - own.mean()) / by)


def test_normalised_first_every_reward_counts_alike():
    r = rewards() * torch.tensor([1.0, 100.0, 0.01])
    found = compose_rewards(r, THIRD, mode="fixed", group=4, order="normalize_then_sum", eps=0.0)
    alike = compose_rewards(
        rewards(), THIRD, mode="fixed", group=4, order="normalize_then_sum", eps=0.0
    )
    torch.testing.assert_close(found.advantage, alike.advantage)
    by_hand = torch.cat([(own - own.mean(0)) / own.std(0) for own in rewards().view(2, 4, 3)])
    torch.testing.assert_close(alike.reward, by_hand.mean(1))


@pytest.mark.parametrize("order", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("mode", ["mirror", "min"])
def test_missing_values(order, mode):
    r = rewards()
    r[0] = nan
    r[3, 1] = nan
    r[4:7, 2] = nan  # one value of the second group is left
    found = compose_rewards(r, THIRD, 0.5, group=4, mode=mode, order=order)
    assert found.reward.isnan().tolist() == [True] + [False] * 7
    assert found.advantage[0] == 0 and found.advantage.isfinite().all()
    assert found.stats[:, 3].tolist() == [7, 6, 4]
    torch.testing.assert_close(found.stats[:, 0], r.double().nanmean(0))
    there = r[~r[:, 1].isnan(), 1].double()
    torch.testing.assert_close(
        found.stats[1], torch.stack((there.mean(), there.std(), there.min(), torch.tensor(6.0)))
    )
    valid = ~r.isnan()
    same = compose_rewards(rewards(), THIRD, 0.5, None, 0.0, 4, mode, order, valid=valid)
    assert torch.equal(found.advantage, same.advantage) and torch.equal(found.log_w, same.log_w)


def test_a_sum_leaves_out_what_is_missing():
    r = torch.tensor([[1.0, nan, 3.0], [1.0, 1.0, 1.0]])
    found = compose_rewards(r, THIRD, mode="fixed")
    torch.testing.assert_close(found.reward, torch.tensor([4 / 3, 1.0]))


def test_an_empty_column_is_said_and_keeps_its_weight():
    r = rewards()
    r[:, 1] = nan
    for mode in ("mirror", "softmax"):
        with pytest.warns(UserWarning, match="no sample has a value of reward 1; its weight stays"):
            found = compose_rewards(r, SKEWED, 0.5, mode=mode)
        assert found.log_w[1] == SKEWED[1]
    assert found.stats[1, :3].isnan().all() and found.stats[1, 3] == 0


def test_no_gradient_and_no_change_of_what_came_in():
    r = rewards().requires_grad_()
    log_w, before = THIRD.clone(), r.detach().clone()
    found = compose_rewards(r, log_w, 0.5)
    assert not found.reward.requires_grad and not found.log_w.requires_grad
    assert torch.equal(log_w, THIRD) and torch.equal(r, before)


def test_half_precision_rewards_are_composed_in_float32():
    found = compose_rewards(rewards().bfloat16(), THIRD.float(), 0.5)
    assert found.reward.dtype == torch.float32 and found.log_w.dtype == torch.float32


INF = rewards()
INF[5, 2] = -math.inf
BAD_COMPOSITIONS = {
    "n differs": (dict(r=torch.zeros(4, 2)), "r: expected shape [B, 3] for 3 weights, got [4, 2]"),
    "no row": (dict(r=torch.zeros(0, 3)), "r: expected shape [B, 3] for 3 weights, got [0, 3]"),
    "integers": (dict(r=torch.zeros(4, 3, dtype=torch.long)), "r: expected floating point, got"),
    "no tensor": (dict(r=[[1.0]]), "r: expected a tensor, got list"),
    "infinity": (dict(r=INF), "r: expected no infinity, reward 2 of row 5 is"),
    "no divisor": (dict(group=3), "group: expected a divisor of the batch of 8, got 3"),
    "group of none": (dict(group=0), "group: expected at least 1, got 0"),
    "group of one": (dict(group=1), "group: expected at least 2 for a standard deviation, got 1"),
    "group half": (dict(group=2.0), "group: expected a whole number, got 2.0"),
    "lam": (dict(lam=-1.0), "lam: expected finite and at least 0, got -1"),
    "lam infinite": (dict(lam=math.inf), "lam: expected finite and at least 0, got inf"),
    "lam of two": (dict(lam=[0.1, 0.2]), "lam: expected one number, or 3, got a shape of [2]"),
    "lam text": (dict(lam="much"), "lam: expected a number, or 3 of them, got 'much'"),
    "floor": (dict(floor=1 / 3), "floor: expected at least 0 and below 1/3, the equal weight, got"),
    "floor below": (dict(floor=-0.1), "floor: expected at least 0 and below 1/3"),
    "sum": (dict(log_w=torch.zeros(3)), "log_w: expected weights that sum to 1, their sum is 3"),
    "NaN weight": (dict(log_w=torch.full((3,), nan)), "log_w: expected weights that sum to 1"),
    "half weights": (dict(log_w=THIRD.half()), "log_w: expected float32 or float64, got"),
    "matrix": (dict(log_w=THIRD.view(3, 1)), "log_w: expected shape [n], got [3, 1]"),
    "zero weight": (
        dict(log_w=torch.tensor([0.0, 0.5, 0.5]).log()),
        "log_w: expected finite values, got [-inf",
    ),
    "bias": (dict(bias=torch.zeros(2)), "bias: expected shape [3] as log_w, got [2]"),
    "bias NaN": (dict(bias=torch.full((3,), nan)), "bias: expected finite values"),
    "mode": (dict(mode="max"), "mode: expected one of mirror, softmax, fixed, min, got 'max'"),
    "order": (dict(order="sum"), "order: expected one of sum_then_normalize, normalize_then_sum"),
    "scale": (dict(scale="all"), "scale: expected one of group, batch, none, got 'all'"),
    "eps": (dict(eps=-1.0), "eps: expected finite and at least 0, got -1"),
    "valid": (dict(valid=torch.ones(8, 3)), "valid: expected bool of shape [8, 3] as r, got"),
    "device": (dict(r=torch.zeros(8, 3, device="meta")), "r is on meta and log_w on cpu"),
}


@pytest.mark.parametrize("case", BAD_COMPOSITIONS)
def test_a_bad_argument_is_named(case):
    changed, message = BAD_COMPOSITIONS[case]
    arguments = {"r": rewards(), "log_w": THIRD, "lam": 0.2} | changed
    with pytest.raises((ValueError, TypeError)) as error:
        compose_rewards(**arguments)
    assert str(error.value).startswith(message)


def test_bad_arguments_of_a_step():
    with pytest.raises(ValueError, match="means: expected no infinity, number 1 is"):
        mirror_step(torch.tensor([0.0, math.inf, 0.0]), THIRD, 0.1)
    with pytest.raises(ValueError, match=r"means: expected shape \[3\] as log_w, got \[2\]"):
        mirror_step(torch.zeros(2), THIRD, 0.1)
    with pytest.raises(ValueError, match="cap: expected above 1/3, the equal weight, and at most"):
        mirror_step(MEANS, THIRD, 0.1, cap=0.3)
