"""The picture of a merger: how well each layer does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyext.files import whole_file

LABELS = 40  # modules whose names find place below the picture


def save_residuals(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw each module's residual, in the order of the rows, and what its cut lost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(7, min(16, 0.25 * len(rows))), 5), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    axes.plot(places, [row["residual"] for row in rows], "o-", label="residual on the samples")
    if any(row["lost"] for row in rows):
        axes.plot(places, [row["lost"] for row in rows], "s--", label="lost to the rank")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("of what no update would leave")
    axes.grid(alpha=0.3)
    axes.legend()
    if len(rows) <= LABELS:
        axes.set_xticks(places, [row["module"] for row in rows], rotation=90, fontsize=6)
    else:
        axes.set_xlabel("module, in the order of the model")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})
