"""The plot of a family's rows: times eager, and the share of the limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness import Family, Row


def save_plot(path: Path, family: Family, groups: Mapping[str, Sequence[Row]]) -> None:
    """Draw two panels for each input, with one bar per timed row, and write the picture.

    Args:
        path: of the picture.
        family: what was measured.
        groups: the rows of each input, by its name.
    """
    timed = {name: [row for row in rows if row.timing] for name, rows in groups.items()}
    timed = {name: rows for name, rows in timed.items() if rows} or {"": []}
    counts = [1 + len(rows) for rows in timed.values()]
    figure = Figure(
        figsize=(11, 0.6 + 0.6 * len(counts) + 0.32 * sum(counts)), layout="constrained"
    )
    panels = figure.subplots(
        len(counts), 2, squeeze=False, sharex="col", sharey="row", height_ratios=counts
    )
    for (name, rows), (left, right) in zip(timed.items(), panels, strict=True):
        left.set_title(name, loc="left")
        labels = [f"{row.stage}: {row.arm}, {row.threads} thr." for row in rows]
        colours = ["tab:orange" if row.arm == family.baseline else "tab:blue" for row in rows]
        _bars(left, labels, [row.times_eager or 0 for row in rows], colours, "{:.1f}")
        _bars(right, labels, [row.share_of_limit or 0 for row in rows], colours, "{:.0%}")
        left.invert_yaxis()
    left, right = panels[-1]
    left.set_xscale("log")
    left.set_xlabel(f"times {family.baseline}")
    right.set_xlim(0, 1)
    machine = "" if family.limit else " (FMA peak or copy bandwidth)"
    right.set_xlabel(f"share of the limit{machine}")
    figure.suptitle(family.name)
    figure.savefig(path, dpi=110)


def _bars(
    axes: Axes, labels: list[str], values: list[float], colours: list[str], text: str
) -> None:
    # Positions by number: equal labels must not share a bar.
    bars = axes.barh(range(len(values)), values, color=colours)
    axes.bar_label(bars, labels=[text.format(value) for value in values], padding=3)
    axes.set_yticks(range(len(labels)), labels)
    axes.grid(axis="x", alpha=0.3)
