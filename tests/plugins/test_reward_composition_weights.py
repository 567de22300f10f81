"""The weights over a training: what moves them, what they keep, files, processes, warnings."""

import json
import math
import subprocess
import sys
import warnings

import pytest
import torch
from pyext_plugins.reward_composition import states
from pyext_plugins.reward_composition.compose import compose_rewards
from pyext_plugins.reward_composition.weights import RewardWeights
from torch import nan

NAMES = ["facts", "length", "tone"]


def batch(seed=0, size=16):
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(seed))


def moved(steps=5, **settings):
    weights = RewardWeights(NAMES, **settings)
    for seed in range(steps):
        weights.update(batch(seed))
    return weights


def test_weights_are_the_softmax_of_what_was_earned():
    weights = moved(lam=0.4)
    earned = sum(batch(seed).double().mean(0) for seed in range(5))
    torch.testing.assert_close(weights.weights, (-0.4 * earned).softmax(0))
    assert weights.step == 5 and torch.equal(weights.means, batch(4).double().mean(0))


def test_a_step_for_each_reward_which_may_change():
    weights = RewardWeights(NAMES, [0.1, 0.2, 0.3])
    weights.update(batch(0))
    weights.lam = 0.5
    weights.update(batch(1))
    steps = torch.tensor([0.1, 0.2, 0.3])
    earned = steps * batch(0).double().mean(0) + 0.5 * batch(1).double().mean(0)
    torch.testing.assert_close(weights.weights, (-earned).softmax(0))
    with pytest.raises(ValueError, match="lam: expected finite and at least 0, got -1"):
        weights.lam = -1


def test_modes_without_memory_and_without_motion():
    torch.testing.assert_close(
        moved(mode="softmax", lam=2.0).weights, (-2 * batch(4).double().mean(0)).softmax(0)
    )
    start = [0.2, 0.3, 0.5]
    assert torch.equal(
        moved(mode="fixed", initial=start).log_w, torch.tensor(start, dtype=torch.float64).log()
    )
    assert torch.equal(
        moved(lam=0.0, initial=start).log_w, moved(mode="fixed", initial=start).log_w
    )
    assert moved(mode="uniform").weights.tolist() == pytest.approx([1 / 3] * 3, abs=1e-15)


def test_the_average_of_means_stands_in_the_exponent():
    weights = moved(steps=3, lam=0.4, smoothing="ema", decay=0.75)
    first, second, third = (batch(seed).double().mean(0) for seed in range(3))
    smooth = [first, 0.75 * first + 0.25 * second]
    smooth.append(0.75 * smooth[1] + 0.25 * third)
    torch.testing.assert_close(weights.weights, (-0.4 * sum(smooth)).softmax(0))


def test_running_scale_makes_units_alike():
    units = torch.tensor([1.0, 1000.0, 0.001])
    plain = RewardWeights(NAMES, scaling="running")
    other = RewardWeights(NAMES, scaling="running")
    for seed in range(4):
        composed = plain.compose(batch(seed), group=4).reward
        torch.testing.assert_close(other.compose(batch(seed) * units, group=4).reward, composed)
    torch.testing.assert_close(plain.weights, other.weights)
    every = torch.cat([batch(seed) for seed in range(4)]).double()
    torch.testing.assert_close(plain.scale, every.std(0))
    last = (every / every.std(0)).mean(0)
    assert not torch.allclose(last, every.mean(0))


def test_scaled_rewards_without_variance_keep_their_weight():
    r = batch()
    r[:, 1] = 0.5
    weights = RewardWeights(NAMES, scaling="running")
    weights.update(r)
    assert weights.weights[1].item() == pytest.approx(1 / 3) and weights.scale[1] == 1
    assert weights.weights[0].item() != pytest.approx(1 / 3)


def test_composing_is_moving_and_then_summing():
    weights = RewardWeights(NAMES, 0.3)
    found = weights.compose(batch(), group=4)
    expected = compose_rewards(batch(), RewardWeights(NAMES).log_w, 0.3, group=4)
    torch.testing.assert_close(found.advantage, expected.advantage)
    least = RewardWeights(NAMES, mode="min").compose(batch()).reward
    assert torch.equal(least, batch().amin(1))


@pytest.mark.parametrize("settings", [{}, {"smoothing": "ema"}, {"scaling": "running"}])
def test_evaluation_changes_nothing(settings):
    weights = moved(**settings)
    before = weights.state_dict()
    weights.update(batch(9), training=False)
    composed = weights.compose(batch(9), training=False)
    assert weights.state_dict() == before
    torch.testing.assert_close(
        composed.reward, (batch(9) / weights.scale.float()) @ weights.weights.float()
    )


@pytest.mark.parametrize("mode", ["mirror", "softmax"])
def test_an_empty_column_keeps_its_weight_and_is_said_once(mode):
    weights = moved(mode=mode)
    before, r = weights.log_w, batch(6)
    r[:, 1] = nan
    with pytest.warns(UserWarning, match=r"reward 'length' has no value in a batch \(update 6\)"):
        weights.update(r)
    assert weights.log_w[1] == before[1] and weights.log_w[0] != before[0]
    assert weights.weights.sum().item() == pytest.approx(1, abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights.update(r)


def test_a_reward_that_stays_at_one_value_is_said_once():
    weights = RewardWeights(NAMES, patience=4)
    r = batch()
    r[:, 2] = 0.25
    values = [0.0, 0.25, 0.25, 0.25]  # of another value at first: three times, not four
    for value in values:
        weights.update(torch.where(r == 0.25, value, r))
    with pytest.warns(
        UserWarning, match="reward 'tone' has been 0.25 for all samples of 4 updates"
    ):
        weights.update(r)
    weights.update(r)


@pytest.mark.parametrize(
    "settings",
    [
        {"lam": [0.1, 0.2, 0.3], "floor": 0.05, "cap": 0.6, "bias": [0.0, 0.1, 0.0]},
        {"mode": "softmax", "smoothing": "ema", "decay": 0.5},
        {"scaling": "running", "patience": 7},
        {"mode": "fixed", "initial": [0.2, 0.3, 0.5]},
    ],
)
def test_a_file_brings_everything_back(tmp_path, settings):
    weights = moved(**settings)
    weights.save(tmp_path / "weights.json")
    loaded = RewardWeights.load(tmp_path / "weights.json")
    assert loaded.state_dict() == weights.state_dict()
    assert set(states.KEYS) == set(weights.state_dict())
    for seed in (7, 8):
        weights.update(batch(seed))
        loaded.update(batch(seed))
    assert torch.equal(loaded.log_w, weights.log_w)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.json"]


def test_rewards_in_another_order_find_their_weights():
    state = moved(lam=[0.1, 0.2, 0.3], smoothing="ema", scaling="running").state_dict()
    turned = RewardWeights(NAMES[::-1], smoothing="ema", scaling="running")
    turned.load_state_dict(state)
    assert turned.lam == (0.3, 0.2, 0.1)
    same = moved(lam=[0.1, 0.2, 0.3], smoothing="ema", scaling="running")
    same.update(batch(9))
    turned.update(batch(9).flip(1))
    torch.testing.assert_close(turned.weights.flip(0), same.weights)


def test_other_rewards_are_refused_or_renormalised():
    state = moved().state_dict()
    weights = RewardWeights(["tone", "facts", "new", "newer"], 0.7)
    before = weights.state_dict()
    with pytest.raises(
        ValueError, match=r"other rewards \(new: new, newer; gone: length\); other_n"
    ):
        weights.load_state_dict(state)
    assert weights.state_dict() == before
    weights.load_state_dict(state, other_names="renormalize")
    old = torch.tensor(state["log_w"], dtype=torch.float64).exp()
    w = weights.weights
    assert w[2:].tolist() == pytest.approx([0.25, 0.25]) and w.sum().item() == pytest.approx(1)
    assert (w[0] / w[1]).item() == pytest.approx((old[2] / old[0]).item())
    assert weights.lam == 0.7 and weights.step == 5


def test_states_that_are_not_whole_are_refused(tmp_path):
    weights = moved()
    state = weights.state_dict()
    bad = {
        "state: expected keys as of state_dict, without log_w": {
            key: value for key, value in state.items() if key != "log_w"
        },
        "state: log_w: expected weights that sum to 1": state | {"log_w": [0.0, 0.0, 0.0]},
        "state: log_w: expected 3 values, got 1": state | {"log_w": [0.0]},
        "state: names: expected at least one, and each once": state | {"names": ["a", "a", "b"]},
        "state: lam: expected finite and at least 0": state | {"lambda": -0.1},
        "state: step: expected a whole number from 0": state | {"step": -1},
        "state: smoothed: expected 3 values, got 1": state | {"smoothed": [1.0]},
        "state: expected mode 'mirror', got 'softmax'": state | {"mode": "softmax"},
        "state: expected scaling 'none', got 'running'": state | {"scaling": "running"},
    }
    for message, changed in bad.items():
        with pytest.raises(ValueError) as error:
            weights.load_state_dict(changed)
        assert str(error.value).startswith(message)
    assert weights.state_dict() == state
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "half.json").write_text(json.dumps(state)[:50])
    (tmp_path / "text.json").write_text(json.dumps(state | {"floor": "low"}))
    for name in ("list", "half", "none"):
        with pytest.raises(ValueError, match="path: expected"):
            RewardWeights.load(tmp_path / f"{name}.json")
    with pytest.raises(ValueError, match="path: .*text.json: "):
        RewardWeights.load(tmp_path / "text.json")


BAD = {
    "names": (dict(names=[]), "names: expected at least one"),
    "twice": (dict(names=["a", "a"]), "names: expected at least one, and each once"),
    "text": (dict(names="abc"), "names: expected a sequence of names, got 'abc'"),
    "lam": (dict(lam=nan), "lam: expected finite"),
    "mode": (dict(mode="lagrange"), "mode: expected one of mirror, softmax, fixed, uniform, min"),
    "initial": (dict(initial=[0.5, 0.6, 0.1]), "initial: expected positive weights of sum 1"),
    "zero": (dict(initial=[0.5, 0.5, 0.0]), "initial: expected positive weights of sum 1"),
    "few": (dict(initial=[0.5, 0.5]), "initial: expected 3 numbers, got a shape of [2]"),
    "uniform": (dict(mode="uniform", initial=[0.2, 0.3, 0.5]), "initial: mode 'uniform' has none"),
    "bias": (dict(bias=[0.0, math.inf, 0.0]), "bias: expected finite values"),
    "floor": (dict(floor=0.4), "floor: expected at least 0 and below 1/3"),
    "cap": (dict(cap=1.5), "cap: expected above 1/3"),
    "smoothing": (dict(smoothing="sma"), "smoothing: expected one of none, ema, got 'sma'"),
    "decay": (dict(decay=1.0), "decay: expected at least 0 and below 1, got 1.0"),
    "scaling": (dict(scaling="batch"), "scaling: expected one of none, running, got 'batch'"),
    "patience": (dict(patience=0), "patience: expected at least 1, got 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_setting_is_named(case):
    changed, message = BAD[case]
    with pytest.raises((ValueError, TypeError)) as error:
        RewardWeights(**({"names": NAMES} | changed))
    assert str(error.value).startswith(message)


def test_bad_batches_leave_the_weights_alone():
    weights = moved()
    before, infinite = weights.state_dict(), batch()
    infinite[3, 1] = math.inf
    bad = {
        "rewards: expected no infinity, reward 'length' of row 3 is": infinite,
        "rewards: expected shape [B, 3] for 3 weights, got [4, 2]": torch.zeros(4, 2),
        "rewards: expected floating point, got torch.int64": torch.zeros(4, 3, dtype=torch.long),
        "rewards: expected a tensor, got list": [[0.0, 0.0, 0.0]],
    }
    for message, r in bad.items():
        with pytest.raises((ValueError, TypeError)) as error:
            weights.update(r)
        assert str(error.value).startswith(message)
    assert weights.state_dict() == before


RANK = """
import json, sys, warnings
import torch
from torch import distributed as dist
from pyext_plugins.reward_composition.weights import RewardWeights

folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
weights = RewardWeights(["facts", "length", "tone"], 0.4, scaling="running")
for seed in range(4):
    r = torch.randn(15, 3, generator=torch.Generator().manual_seed(seed))
    r[:7, 1] = torch.nan  # the first process has none of these
    share = r[:7] if rank == 0 else r[7:]
    weights.update(share)
state = weights.state_dict()
infinite = torch.zeros(2, 3)
infinite[1, 2] = torch.inf if rank else 0.0
try:
    weights.update(infinite)
except ValueError as error:
    state["error"] = str(error)
json.dump(state, open(f"{folder}/{rank}.json", "w"))
dist.barrier()
dist.destroy_process_group()
"""


def test_processes_hold_the_same_weights(tmp_path):
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(tmp_path), str(rank)]) for rank in (0, 1)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (
        first.pop("error") == "rewards: expected no infinity, reward 'tone' is on another process"
    )
    assert second.pop("error") == "rewards: expected no infinity, reward 'tone' of row 1 is"
    assert first == second
    alone = RewardWeights(NAMES, 0.4, scaling="running")
    for seed in range(4):
        r = torch.randn(15, 3, generator=torch.Generator().manual_seed(seed))
        r[:7, 1] = nan
        alone.update(r)
    found = torch.tensor(first["log_w"], dtype=torch.float64)
    torch.testing.assert_close(found, alone.log_w)
