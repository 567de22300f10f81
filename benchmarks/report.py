"""Runs a family and says what came of it: a table, claims, JSON, Markdown and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
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


def by_input(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each input, in their order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.input, []).append(row)
    return groups


def table(rows: Sequence[Row]) -> list[dict[str, Value]]:
    """The timed rows."""
    lines: list[dict[str, Value]] = []
    for row in rows:
        if row.timing is None:
            continue
        median, lower, upper = (
            1e3 * x for x in (row.timing.median, row.timing.lower, row.timing.upper)
        )
        eager = row.times_eager
        lines.append(
            {
                "stage": row.stage,
                "arm": row.arm,
                "threads": row.threads,
                "ms (quartiles)": f"{median:.2f} ({lower:.2f} to {upper:.2f})",
                "times eager": None if eager is None else f"{eager:.1f}",
                **against_limit(row),
            }
        )
    return lines


def against_limit(row: Row) -> dict[str, Value]:
    """The column that holds a row against the family's limit, or against the machine's."""
    if row.times_limit is not None:
        return {"times the limit": f"{row.times_limit:.2f}"}
    share = row.share_of_limit
    return {"share of the limit": None if share is None else f"{share:.1%} of {row.limit}"}


def left_out(rows: Sequence[Row]) -> list[str]:
    """A line for every arm that was not timed and why, with the stages this is about."""
    stages: dict[str, list[str]] = {}
    for row in rows:
        if row.timing is None:
            known = stages.setdefault(f"{row.arm}: {why_left_out(row)}", [])
            if row.stage not in known:
                known.append(row.stage)
    return [f"{reason} ({', '.join(where)})" for reason, where in stages.items()]


def why_left_out(row: Row) -> str:
    if row.skipped:
        return row.skipped
    if row.relative_error is None:
        return "wrong result: another shape, or not finite"
    return f"wrong result: relative error {row.relative_error:.1e}"


def as_json(
    family: Family, rows: Sequence[Row], claims: Sequence[Claim], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """All figures of a run, with the machine, the commit and the settings they were taken with."""
    return {
        "family": family.name,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment.describe(),
        "settings": dict(settings),
        "rows": [
            {
                **asdict(row),
                "limit": row.limit,
                "share_of_limit": row.share_of_limit,
                "share_of_fma_peak": row.share_of_fma_peak,
            }
            for row in rows
        ],
        "claims": [claim.as_json() for claim in claims],
    }


def as_markdown(rows: Sequence[Row], claims: Sequence[Claim]) -> str:
    """A table of each input, a list of what was not timed below it, and the claims."""
    parts = []
    for name, group in by_input(rows).items():
        parts += [f"{name}\n", markdown_table(table(group))]
        parts.append("".join(f"- not timed: {line}\n" for line in left_out(group)))
    parts.append(markdown_table([claim_line(claim) for claim in claims]))
    return "\n".join(part for part in parts if part)


def claim_line(claim: Claim) -> dict[str, Value]:
    return {
        "claim": claim.text,
        "measured": None if claim.measured is None else f"{claim.measured:.3g}",
        "wanted": f"{claim.relation} {claim.wanted}",
        "verdict": {True: "held", False: "FAILED", None: "open"}[claim.held],
    }


def markdown_table(lines: Sequence[Mapping[str, Value]]) -> str:
    if not lines:
        return ""
    cells = [list(lines[0]), ["---"] * len(lines[0])]
    cells += [["-" if value is None else str(value) for value in line.values()] for line in lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


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
    for name, group in by_input(rows).items():
        show_rows(table(group), title=name)
        for line in left_out(group):
            print(f"not timed: {line}")
    show_claims(claims)
    save(output, chosen, rows, claims, {"threads": list(threads), "seconds": seconds})
    return all(claim.held is not False for claim in claims)


def save(
    folder: Path,
    family: Family,
    rows: Sequence[Row],
    claims: Sequence[Claim],
    settings: Mapping[str, Any],
) -> None:
    """Write ``<family>.json``, ``.md`` and ``.png``."""
    figures = as_json(family, rows, claims, settings)
    with whole_file(folder / f"{family.name}.json") as path:
        path.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")
    with whole_file(folder / f"{family.name}.md") as path:
        path.write_text(as_markdown(rows, claims))
    with whole_file(folder / f"{family.name}.png") as path:
        save_plot(path, family, by_input(rows))
