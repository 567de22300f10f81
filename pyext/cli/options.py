"""What several commands take."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pyext.errors import UserError

Name = Annotated[str, typer.Argument(metavar="NAME", help="A method, as `pyext list` names it.")]
Folder = Annotated[Path, typer.Option("-o", "--output", help="Folder for what is written.")]


def make_folder(path: Path) -> None:
    """Make an output folder before any work is done that would have nowhere to go."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Only writing tells whether one can: permissions do not show a read-only disk.
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f"--output: cannot write to {path}: {error.strerror}") from error
