"""The pictures of the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from pyext.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyext_plugins.reward_composition.study import Run


def save_courses(path: Path, names: Sequence[str], runs: Mapping[str, Run], best: float) -> None:
    """Draw mean rewards, and below them the weights, over the steps of some trainings.

    Args:
        names: of the rewards.
        runs: by the arm's name, a column each.
        best: drawn as a line: what the lowest reward can reach.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(runs), 5.4), layout="constrained")
    axes = figure.subplots(2, len(runs), sharex=True, sharey="row", squeeze=False)
    for (arm, run), (rewards, weights) in zip(runs.items(), axes.T, strict=True):
        rewards.set_title(arm)
        rewards.plot(run.means, label=names)
        rewards.axhline(best, color="k", linestyle=":", linewidth=1)
        weights.plot(run.weights)
        weights.set_xlabel("step")
        for part in (rewards, weights):
            part.grid(alpha=0.3)
    axes[0, 0].set_ylabel("mean rewards of the batch\ndotted: best of the lowest")
    axes[1, 0].set_ylabel("weights")
    axes[0, 0].legend()
    _save(path, figure)


def save_worst(path: Path, worst: Mapping[str, Sequence[float]], best: float) -> None:
    """Draw the lowest reward of each arm: a bar for its mean over seeds, a dot for each seed.

    Args:
        best: drawn as a line: what it can reach.
    """
    from matplotlib.figure import Figure

    arms = list(worst)[::-1]
    figure = Figure(figsize=(7, 1 + 0.35 * len(arms)), layout="constrained")
    axes = figure.subplots()
    axes.barh(arms, [mean(worst[arm]) for arm in arms], color="C0", alpha=0.6)
    for place, arm in enumerate(arms):
        axes.plot(worst[arm], [place] * len(worst[arm]), "k.", markersize=4)
    axes.axvline(best, color="k", linestyle=":", linewidth=1)
    axes.set_xlabel(f"lowest mean reward; dotted: the best possible, {best:.4f}")
    axes.grid(axis="x", alpha=0.3)
    _save(path, figure)


def _save(path: Path, figure: Figure) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})
