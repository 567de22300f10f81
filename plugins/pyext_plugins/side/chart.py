"""The picture of the demos: accuracy over memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from pyext.files import whole_file


def save_chart(path: Path, arms: Mapping[str, tuple[float, Sequence[float]]]) -> None:
    """Draw each arm's mean accuracy, with its least and most, over the MiB it saves for backward.

    Args:
        arms: name to MiB and accuracies in percent, one a seed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, (size, found) in arms.items():
        middle = mean(found)
        spread = [[middle - min(found)], [max(found) - middle]]
        axes.errorbar([size], [middle], yerr=spread, fmt="o", capsize=3, label=name)
    axes.legend(loc="upper left")
    axes.set_xscale("log")
    axes.set_xlabel("saved for backward (MiB, logarithmic)")
    axes.set_ylabel("accuracy (%), mean and range over seeds")
    axes.grid(alpha=0.3)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120)
