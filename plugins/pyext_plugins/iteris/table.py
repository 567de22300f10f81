"""The report of a merger, as a terminal has room for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyext.report import Value

MOST = 40  # rows; of longer reports those with the largest residuals are shown


def readable(rows: Sequence[Mapping[str, Value]], tasks: Sequence[str]) -> list[dict[str, Value]]:
    """Fewer and shorter columns: weights as shares, and of the ladder only where it was climbed.

    Args:
        rows: of a report.
        tasks: in whose order the shares stand.
    """
    shown = list(rows)
    if len(shown) > MOST:
        worst = sorted(shown, key=lambda row: float(row["residual"] or 0))[-MOST:]
        shown = [row for row in shown if row in worst]
    climbed = any(row.get("rung") for row in shown)
    return [
        {
            "module": row["module"],
            "weights": _shares(row, tasks),
            "condition": _short(row.get("condition")),
            **({"rung": row["rung"], "jitter": _short(row["jitter"])} if climbed else {}),
            "residual": row["residual"],
            "rank": row["rank"],
            "lost": row["lost"],
        }
        for row in shown
    ]


def _shares(row: Mapping[str, Value], tasks: Sequence[str]) -> str:
    weights = [float(row.get(f"weight {task}") or 0) for task in tasks]
    return " ".join(f"{weight / sum(weights):.2f}" for weight in weights)


def _short(value: Value) -> Value:
    return f"{value:.0e}" if isinstance(value, float) and value else value
