"""The demo's arms: ways to make one reward of three, each trained with several seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyext_plugins.reward_composition.compose import Order
from pyext_plugins.reward_composition.learning import Settings, train
from pyext_plugins.reward_composition.policy import NAMES, Policy
from pyext_plugins.reward_composition.weights import RewardWeights

LAST = 50  # steps that are measured


@dataclass(frozen=True)
class Arm:
    """A way to compose rewards.

    Args:
        weights: makes the weights, new for every training.
        order: of `compose_rewards`.
        epochs: of PPO; 0 for REINFORCE.
    """

    weights: Callable[[], RewardWeights]
    order: Order = "sum_then_normalize"
    epochs: int = 0


def _mirror(lam: float) -> Callable[[], RewardWeights]:
    return lambda: RewardWeights(NAMES, lam)


EQUAL, Z_SCORE, MINIMUM, SOFTMAX = "equal weights", "z-score, then sum", "minimum", "softmax, 5"
MIRROR, MIRROR_1, MIRROR_3, MIRROR_PPO = "mirror, 0.2", "mirror, 1", "mirror, 3", "mirror, 0.2, PPO"
ARMS = {
    EQUAL: Arm(lambda: RewardWeights(NAMES, mode="uniform")),
    Z_SCORE: Arm(lambda: RewardWeights(NAMES, mode="uniform"), order="normalize_then_sum"),
    MINIMUM: Arm(lambda: RewardWeights(NAMES, mode="min")),
    SOFTMAX: Arm(lambda: RewardWeights(NAMES, 5.0, mode="softmax")),
    MIRROR: Arm(_mirror(0.2)),
    MIRROR_1: Arm(_mirror(1.0)),
    MIRROR_3: Arm(_mirror(3.0)),
    MIRROR_PPO: Arm(_mirror(0.2), epochs=3),
}


@dataclass(frozen=True)
class Run:
    """One training: mean rewards and weights, [steps, n], and the policy it led to."""

    means: Tensor
    weights: Tensor
    policy: Policy

    @property
    def last(self) -> Tensor:
        """Mean of each reward over the last steps; [n]."""
        return self.means[-LAST:].mean(0)

    @property
    def worst(self) -> float:
        """The lowest mean reward of each of the last steps, on average."""
        return float(self.means[-LAST:].amin(1).mean())

    @property
    def swing(self) -> float:
        """Standard deviation over the last steps, of the reward that moves most."""
        return float(self.means[-LAST:].std(0).amax())

    @property
    def total(self) -> float:
        return float(self.last.sum())


def run(arm: Arm, settings: Settings, seed: int) -> Run:
    """Train a new policy; seed and settings decide everything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = Policy()
    weights = arm.weights()
    means, history = [], []

    def compose(rewards: Tensor) -> Tensor:
        return weights.compose(rewards, order=arm.order).reward

    def watch(rewards: Tensor) -> None:
        means.append(rewards.double().mean(0))
        history.append(weights.weights)

    train(policy, compose, replace(settings, epochs=arm.epochs), seed, watch)
    return Run(torch.stack(means), torch.stack(history), policy)


def work(settings: Settings, seeds: int) -> Iterator[tuple[str, Run]]:
    """Every arm with every seed."""
    for seed in range(seeds):
        for name, arm in ARMS.items():
            yield name, run(arm, settings, seed)
