"""`pyext bench`: a face on the folder `benchmarks` of the source checkout."""

from __future__ import annotations

import os
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Annotated

import typer

from pyext.cli.options import Folder
from pyext.errors import UserError
from pyext.files import make_output_folder
from pyext.requirements import missing_requirements


def bench(
    family: Annotated[
        str | None, typer.Argument(metavar="[FAMILY]", help="Of benchmarks; all if left out.")
    ] = None,
    threads: Annotated[
        str | None, typer.Option(help="Numbers of threads, as in 1,2; up to 2 if left out.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="For the timing of a family; its own if left out.")
    ] = None,
    output: Folder = Path("out/bench"),
) -> None:
    """Measure the op families against their reference and the limits of this machine.

    Writes JSON, a table and a plot for each. Exit code 1 if a claim failed.
    """
    counts = parse_threads(threads)
    use_benchmarks_of_the_checkout()
    from benchmarks.harness import families
    from benchmarks.report import main_run

    if family is not None and family not in families():
        raise UserError(f"no benchmarks for family {family!r}; there are: {', '.join(families())}")
    make_output_folder(output)
    chosen = [family] if family else families()
    if not all([main_run(name, counts, seconds, output) for name in chosen]):
        raise typer.Exit(1)


def parse_threads(text: str | None) -> list[int]:
    """Thread counts from ``1,2``; without a text 1, and 2 where there are two cores."""
    if text is None:
        return [1, 2] if (os.cpu_count() or 1) > 1 else [1]
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or len(set(counts)) < len(counts):
        raise UserError(f"--threads: expected different counts like 1,2, got {text!r}")
    return counts


def use_benchmarks_of_the_checkout() -> None:
    """Make `benchmarks` importable: it lies beside the package of an editable install."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "harness.py").exists():
        raise UserError(
            "the benchmarks are part of the source checkout, which this installation is not: "
            "clone it and run `make bench` there"
        )
    missing = missing_requirements(distribution("pyext-kernels"), "bench")
    if missing:
        raise UserError(f"missing: {', '.join(missing)}: pip install 'pyext-kernels[bench]'")
    # First, before another package of that name.
    sys.path.insert(0, str(root))
