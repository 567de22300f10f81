"""What several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(metavar="NAME", help="A method, as `pyext list` names it.")]
Folder = Annotated[Path, typer.Option("-o", "--output", help="Folder for what is written.")]
