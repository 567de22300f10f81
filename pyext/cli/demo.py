"""`pyext demo`: a method's small reproduction, and whether its claims held."""

from __future__ import annotations

from pathlib import Path

import typer

from pyext import methods
from pyext.cli.options import Folder, Name
from pyext.errors import UserError
from pyext.files import make_output_folder


def demo(name: Name, output: Folder = Path("out/demo")) -> None:
    """Run a method's demo: a small reproduction whose claims can fail.

    Writes report.json and the pictures. Exit code 1 if a claim failed.
    """
    from pyext.show import show_claims, show_rows

    method = methods.get(name)
    if method.demo is None:
        raise UserError(f"method {name!r} has no demo")
    run = methods.resolve(method.demo)
    make_output_folder(output)
    report = run(output)
    report.save(output / "report.json")
    show_rows(report.rows, title=report.title)
    show_claims(report.claims)
    for caption, picture in report.pictures.items():
        print(f"{caption}: {picture}")
    if any(claim.held is False for claim in report.claims):
        raise typer.Exit(1)
