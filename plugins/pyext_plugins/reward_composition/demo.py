"""The demo: three rewards that compete for eight tokens, and what the weights make of them.

Shown: that the lowest reward reaches the best value it can have, where other ways to compose leave
it below; what that costs in total reward; and that too large a step goes round in circles.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import mean

import torch

from pyext import environment
from pyext.report import Claim, Report, Value
from pyext_plugins.progress import progress_bar
from pyext_plugins.reward_composition import study
from pyext_plugins.reward_composition.chart import save_courses, save_worst
from pyext_plugins.reward_composition.learning import Settings
from pyext_plugins.reward_composition.policy import NAMES, best_worst, equilibrium
from pyext_plugins.reward_composition.study import ARMS, LAST, Run
from pyext_plugins.reward_composition.weights import RewardWeights

SEEDS = 3
ORDER = (study.MIRROR, study.MINIMUM, study.Z_SCORE, study.EQUAL)  # by the lowest reward
MIND = [
    "The lowest reward is found in each step and then averaged over steps, so that noise of the "
    "batch counts against it.",
    "The per-sample minimum works here since one sample can serve all rewards; where it can serve "
    "one only, its minimum is constant and says nothing.",
    "The weights settle beside those of the equilibrium: the KL penalty shares in the balance.",
    "With PPO, mirror descent is shown for its own sake; the other ways were not run with it.",
]


def demo(output: Path) -> Report:
    """All arms. Writes courses.png and worst.png."""
    return run(output, Settings(), SEEDS)


def run(output: Path, settings: Settings, seeds: int) -> Report:
    """All arms at some size."""
    runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
    with progress_bar("arms and seeds", len(ARMS) * seeds) as show:
        for done, (arm, found) in enumerate(study.work(settings, seeds), start=1):
            runs[arm].append(found)
            show(done, None)
    for sentence in MIND:
        print(f"mind: {sentence}")
    courses, worst = output / "courses.png", output / "worst.png"
    shown = (study.EQUAL, study.MIRROR, study.MIRROR_3)
    save_courses(courses, NAMES, {arm: runs[arm][0] for arm in shown}, best_worst())
    save_worst(worst, {arm: _worst(found) for arm, found in runs.items()}, best_worst())
    return Report(
        title=f"Three competing rewards, the last {LAST} of {settings.steps} steps, {seeds} seeds",
        rows=[_row(arm, found) for arm, found in runs.items()],
        claims=_claims(runs, settings),
        pictures={"rewards and weights over a training": courses, "lowest reward": worst},
        facts={
            "mind": MIND,
            "best lowest reward": best_worst(),
            "weights of the equilibrium": equilibrium(),
            "settings": asdict(settings),
            "lowest reward by seed": {arm: _worst(found) for arm, found in runs.items()},
            "environment": environment.describe(),
        },
    )


def _claims(runs: dict[str, list[Run]], settings: Settings) -> list[Claim]:
    worst = {arm: _worst(found) for arm, found in runs.items()}
    mirror = worst[study.MIRROR]
    sums = torch.cat([run.weights.sum(1) for found in runs.values() for run in found])
    return [
        Claim(
            f"lowest reward off the best possible, {study.MIRROR}, most of all seeds",
            max(abs(value - best_worst()) for value in mirror),
            "<=",
            0.02,
        ),
        Claim(
            f"lowest reward: {study.MIRROR} above {study.EQUAL}, least of all seeds",
            _least_gain(mirror, worst[study.EQUAL]),
            ">=",
            0.08,
        ),
        *[
            Claim(
                f"lowest reward: {better} above {worse}, least of all seeds",
                _least_gain(worst[better], worst[worse]),
                ">=",
                0,
            )
            for better, worse in zip(ORDER, ORDER[1:], strict=False)
        ],
        Claim(
            f"lowest reward: {study.MIRROR} above {study.SOFTMAX}, least of all seeds",
            _least_gain(mirror, worst[study.SOFTMAX]),
            ">=",
            0,
        ),
        Claim(
            f"too large a step swings: {study.MIRROR_3} over {study.MIRROR}, least of all seeds",
            min(
                wild.swing / calm.swing
                for wild, calm in zip(runs[study.MIRROR_3], runs[study.MIRROR], strict=True)
            ),
            ">=",
            5,
        ),
        Claim(
            f"and loses: lowest reward of {study.MIRROR} above {study.MIRROR_3}, least",
            _least_gain(mirror, worst[study.MIRROR_3]),
            ">=",
            0,
        ),
        Claim(
            f"the price: total reward of {study.EQUAL} above {study.MIRROR}, least of all seeds",
            min(
                equal.total - fair.total
                for equal, fair in zip(runs[study.EQUAL], runs[study.MIRROR], strict=True)
            ),
            ">=",
            0,
        ),
        Claim("weights' sum off 1, most of all steps", float((sums - 1).abs().max()), "<=", 1e-12),
        Claim(
            "numbers of policy, weights and rewards that differ between lambda 0 and fixed weights",
            _differing(settings),
            "<=",
            0,
        ),
    ]


def _least_gain(better: list[float], worse: list[float]) -> float:
    return min(first - second for first, second in zip(better, worse, strict=True))


def _differing(settings: Settings) -> int:
    """How much a training at lambda 0 differs from one with fixed weights, bit for bit."""
    start = equilibrium()
    still = study.Arm(lambda: RewardWeights(NAMES, 0.0, initial=start))
    fixed = study.Arm(lambda: RewardWeights(NAMES, mode="fixed", initial=start))
    first, second = (study.run(arm, settings, 0) for arm in (still, fixed))
    pairs = [
        (first.means, second.means),
        (first.weights, second.weights),
        *zip(first.policy.parameters(), second.policy.parameters(), strict=True),
    ]
    return sum(int((one != other).sum()) for one, other in pairs)


def _worst(runs: list[Run]) -> list[float]:
    return [run.worst for run in runs]


def _row(arm: str, runs: list[Run]) -> dict[str, Value]:
    last = torch.stack([run.last for run in runs]).mean(0)
    weights = torch.stack([run.weights[-LAST:].mean(0) for run in runs]).mean(0)
    return {
        "arm": arm,
        **{name: round(value, 3) for name, value in zip(NAMES, last.tolist(), strict=True)},
        "lowest": round(mean(_worst(runs)), 3),
        "swing": round(mean(run.swing for run in runs), 3),
        "total": round(mean(run.total for run in runs), 3),
        "weights": " ".join(f"{weight:.2f}" for weight in weights.tolist()),
    }
