"""REINFORCE and PPO in plain PyTorch, for any composition of rewards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyext_plugins.reward_composition.policy import Policy, score

Compose = Callable[[Tensor], Tensor]  # rewards [B, n] to one [B]


@dataclass(frozen=True)
class Settings:
    """Of a training.

    Args:
        beta: of the KL penalty against the initial policy, taken from each sequence's reward.
        epochs: passes of PPO over a batch; 0 for REINFORCE, which takes one step.
        clip: of PPO's probability ratio.
    """

    steps: int = 200
    batch: int = 256
    rate: float = 1e-2
    beta: float = 0.02
    epochs: int = 0
    clip: float = 0.2


def train(
    policy: Policy,
    compose: Compose,
    settings: Settings,
    seed: int,
    watch: Callable[[Tensor], None],
) -> None:
    """Train a policy on composed rewards.

    Args:
        policy: changed in place.
        compose: called once a batch, however often PPO goes over it.
        seed: of the samples.
        watch: given the rewards [B, n] of every batch, after ``compose``.
    """
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings.steps):
        words = policy.sample(settings.batch, generator)
        rewards = score(words)
        composed = compose(rewards)
        watch(rewards)
        log_p = policy.log_probability(words)
        old = log_p.detach()
        divergence = (old - reference.log_probability(words)).sum(1)
        advantage = standardised(composed - settings.beta * divergence)
        if settings.epochs == 0:
            _step(optimizer, reinforce_loss(log_p, advantage))
        for _ in range(settings.epochs):
            log_p = policy.log_probability(words)
            _step(optimizer, ppo_loss(log_p, old, advantage, settings.clip))


def standardised(reward: Tensor) -> Tensor:
    """Rewards [B] as advantages: mean 0, standard deviation 1."""
    return (reward - reward.mean()) / (reward.std() + 1e-8)


def reinforce_loss(log_p: Tensor, advantage: Tensor) -> Tensor:
    """Of log-probabilities [B, T] of sampled tokens and advantages [B] (Williams 1992)."""
    return -(advantage * log_p.sum(1)).mean()


def ppo_loss(log_p: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The clipped objective, token by token (Schulman et al. 2017, equation 7).

    Args:
        log_p, old: [B, T], log-probabilities under the policy and under the one that sampled.
        advantage: [B], of each sequence.
    """
    ratio = (log_p - old).exp()
    gain = advantage.unsqueeze(1)
    return -torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain).sum(1).mean()


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
