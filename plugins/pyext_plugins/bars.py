"""The picture of a comparison: a bar for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from pyext.files import whole_file


def save_bars(
    path: Path, scores: Mapping[str, Sequence[float]], label: str, over: str = "tasks"
) -> None:
    """Draw each method's mean over the tasks, and a dot for each task, from the best to the worst.

    Args:
        scores: by method, one a task.
        label: of the scores.
        over: what the scores of a method are of, if not tasks.
    """
    from matplotlib.figure import Figure

    names = sorted(scores, key=lambda name: mean(scores[name]))
    figure = Figure(figsize=(8, 1 + 0.28 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, [mean(scores[name]) for name in names], color="C0", alpha=0.6)
    for place, name in enumerate(names):
        axes.plot(scores[name], [place] * len(scores[name]), "k.", markersize=4)
    axes.set_xlabel(f"{label}\nbars: mean over the {over}; dots: each of them")
    axes.grid(axis="x", alpha=0.3)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})
