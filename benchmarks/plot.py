"""The plot of a family's rows: times eager, and the share of the machine's limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness import Family, Row


def save_plot(path: Path, family: Family, rows: Sequence[Row]) -> None:
    """Draw one bar per timed row in two panels and write the picture."""
    timed = [row for row in rows if row.timing]
    figure = Figure(figsize=(11, 1.2 + 0.32 * len(timed)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    inputs = dict.fromkeys(row.input for row in timed)
    labels = [f"{row.stage}: {row.arm}, {row.threads} thr." for row in timed]
    if len(inputs) > 1:
        labels = [f"{row.input}, {label}" for row, label in zip(timed, labels, strict=True)]
    colours = ["tab:orange" if row.arm == family.baseline else "tab:blue" for row in timed]
    _bars(left, labels, [row.times_eager or 0 for row in timed], colours, "{:.1f}")
    left.set_xscale("log")
    left.set_xlabel(f"times {family.baseline}")
    _bars(right, labels, [row.share_of_limit or 0 for row in timed], colours, "{:.0%}")
    right.set_xlim(0, max([1.0, *(row.share_of_limit or 0 for row in timed)]))
    right.set_xlabel(f"share of the limit ({family.limit or 'FMA peak or copy bandwidth'})")
    left.invert_yaxis()
    figure.suptitle(f"{family.name}: {next(iter(inputs))}" if len(inputs) == 1 else family.name)
    figure.savefig(path, dpi=110)


def _bars(
    axes: Axes, labels: list[str], values: list[float], colours: list[str], text: str
) -> None:
    # Positions by number: equal labels must not share a bar.
    bars = axes.barh(range(len(values)), values, color=colours)
    axes.bar_label(bars, labels=[text.format(value) for value in values], padding=3)
    axes.set_yticks(range(len(labels)), labels)
    axes.grid(axis="x", alpha=0.3)
