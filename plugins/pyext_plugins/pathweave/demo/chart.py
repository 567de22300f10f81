"""The picture of the demo: T and F, step after step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from pyext.files import whole_file
from pyext_plugins.pathweave.metrics import TransferAndForgetting


def save_chart(
    path: Path,
    titles: Sequence[str],
    studies: Sequence[tuple[Sequence[str], Mapping[str, Sequence[TransferAndForgetting]]]],
) -> None:
    """Draw two panels for each study, T above F: means over seeds, and their range.

    Args:
        titles: one a study.
        studies: names of the steps, and by arm what was measured, one a seed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(studies), 7), layout="constrained")
    grid = figure.subplots(2, len(studies), squeeze=False, sharey="row")
    colours: dict[str, str] = {}
    for column, (title, (steps, arms)) in enumerate(zip(titles, studies, strict=True)):
        for row, label in enumerate(("T, accuracy when learned (%)", "F, forgotten (points)")):
            axes = grid[row][column]
            for arm, found in arms.items():
                colour = colours.setdefault(arm, f"C{len(colours)}")
                by_step = list(zip(*(seed[row] for seed in found), strict=True))
                middle = [mean(values) for values in by_step]
                axes.plot(steps, middle, "o-", color=colour, label=arm, markersize=4)
                low, high = ([f(values) for values in by_step] for f in (min, max))
                axes.fill_between(steps, low, high, color=colour, alpha=0.12)
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
        grid[0][column].set_title(title)
    grid[0][0].legend(fontsize="small")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})
