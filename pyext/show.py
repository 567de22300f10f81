"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyext.report import Claim, Value

_VERDICTS = {
    True: Text("held", style="green"),
    False: Text("FAILED", style="bold red"),
    None: Text("open", style="yellow"),
}


def show_rows(rows: Sequence[Mapping[str, Value]], title: str | None = None) -> None:
    """Print a table; the first row's keys are its columns."""
    if not rows:
        return
    # Text, because rich takes brackets in a plain string for its markup.
    table = Table(title=None if title is None else Text(title))
    for column in rows[0]:
        table.add_column(Text(column))
    for row in rows:
        # Folded where the terminal is narrow: the end of a name is often what tells it apart.
        cells = (_cell(row.get(column)) for column in rows[0])
        table.add_row(*(Text(cell, overflow="fold") for cell in cells))
    Console().print(table)


def show_claims(claims: Sequence[Claim]) -> None:
    """Print what was claimed, what was measured, and whether it held."""
    if not claims:
        return
    table = Table(title="Claims")
    for column in ("claim", "measured", "wanted", "verdict"):
        table.add_column(column)
    for claim in claims:
        wanted = f"{claim.relation} {_cell(claim.wanted)}"
        table.add_row(Text(claim.text), _cell(claim.measured), wanted, _VERDICTS[claim.held])
    Console().print(table)


def _cell(value: Value) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
