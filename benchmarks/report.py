"""Runs a family and says what came of it: a table, claims, JSON, Markdown and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.harness import Family, Row, load_family
from benchmarks.measure import run_family
from benchmarks.plot import save_plot
from pyext import environment
from pyext.files import whole_file
from pyext.report import Claim, Value
from pyext.show import show_claims, show_rows


def table(rows: Sequence[Row]) -> list[dict[str, Value]]:
    """The timed rows."""
    lines: list[dict[str, Value]] = []
    for row in rows:
        if row.timing is None:
            continue
        median, lower, upper = (
            1e3 * x for x in (row.timing.median, row.timing.lower, row.timing.upper)
        )
        eager, share = row.times_eager, row.share_of_limit
        lines.append(
            {
                "stage": row.stage,
                "arm": row.arm,
                "threads": row.threads,
                "ms (quartiles)": f"{median:.2f} ({lower:.2f} to {upper:.2f})",
                "times eager": None if eager is None else f"{eager:.1f}",
                "share of the limit": None if share is None else f"{share:.1%} of {row.limit}",
            }
        )
    return lines


def left_out(rows: Sequence[Row]) -> list[str]:
    """A line for every arm that was not timed, and why."""
    lines = []
    for row in rows:
        if row.timing is None:
            why = row.skipped or f"wrong result, relative error {row.relative_error:.1e}"
            lines.append(f"{row.stage}: {row.arm}: {why}")
    return lines


def as_json(family: Family, rows: Sequence[Row], claims: Sequence[Claim]) -> dict[str, Any]:
    """All figures of a run, with the machine and the commit they were taken on."""
    return {
        "family": family.name,
        "environment": environment.describe(),
        "rows": [
            {**asdict(row), "limit": row.limit, "share_of_limit": row.share_of_limit}
            for row in rows
        ],
        "claims": [claim.as_json() for claim in claims],
    }


def as_markdown(rows: Sequence[Row], claims: Sequence[Claim]) -> str:
    lines = table(rows)
    header = list(lines[0]) if lines else []
    body = [[str(value) for value in line.values()] for line in lines]
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in [header, ["---"] * len(header), *body])
    text += "".join(f"\nNot timed: {line}\n" for line in left_out(rows))
    for claim in claims:
        verdict = {True: "held", False: "FAILED", None: "open"}[claim.held]
        measured = "-" if claim.measured is None else f"{claim.measured:.3g}"
        text += f"\n{verdict}: {claim.text}: {measured}, wanted {claim.relation} {claim.wanted}\n"
    return text


def measure_with_progress(family: Family, threads: Sequence[int], seconds: float) -> list[Row]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(family.name, total=1.0)
        return run_family(
            family,
            threads,
            seconds,
            progress=lambda label, done: bar.update(task, description=label, completed=done),
        )


def main_run(family: str, threads: Sequence[int], seconds: float | None, output: Path) -> bool:
    """Measure a family; print the table and the claims; write JSON, Markdown and a plot.

    Args:
        family: one of `benchmarks.harness.families`.
        threads: numbers of intra-op threads.
        seconds: for the timing; None takes the family's own.
        output: a folder, made if need be.

    Returns:
        Whether no claim failed.

    Raises:
        ValueError: there is no such family.
    """
    chosen = load_family(family)
    output.mkdir(parents=True, exist_ok=True)
    if seconds is None:
        seconds = chosen.seconds
    rows = measure_with_progress(chosen, threads, seconds)
    claims = chosen.claims(rows)
    show_rows(table(rows), title=rows[0].input if rows else None)
    for line in left_out(rows):
        print(f"not timed: {line}")
    show_claims(claims)
    with whole_file(output / f"{family}.json") as path:
        path.write_text(json.dumps(as_json(chosen, rows, claims), indent=2) + "\n")
    with whole_file(output / f"{family}.md") as path:
        path.write_text(as_markdown(rows, claims))
    with whole_file(output / f"{family}.png") as path:
        save_plot(path, chosen, rows)
    return all(claim.held is not False for claim in claims)
