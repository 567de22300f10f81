"""`pyext new-plugin`: writes a plugin package from the templates in `pyext/templates/plugin`."""

from __future__ import annotations

import keyword
import re
import tempfile
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from pyext import methods
from pyext.errors import UserError

TEMPLATES = Path(__file__).resolve().parents[1] / "templates" / "plugin"


def new_plugin(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder to make; its name names the method.")
    ],
) -> None:
    """Write a plugin package that installs, lists and runs: a place to start from."""
    name = write_plugin(path)
    print(f"Wrote {path}. Next:\n  pip install -e {path}\n  pyext demo {name}\n  pytest {path}")


def write_plugin(path: Path) -> str:
    """Make the folder ``path`` with a whole plugin package, and return the method's name.

    The folder's name names the method; it appears complete or not at all.

    Raises:
        UserError: the folder exists, cannot be made, or its name names no method.
    """
    name = path.resolve().name
    package = name.replace("-", "_")
    _check_name(name, package)
    if path.exists():
        raise UserError(f"PATH: {path} exists; name a folder that does not")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-plugin-") as folder:
            _fill(Path(folder) / name, name, package)
            (Path(folder) / name).rename(path)
    except OSError as error:
        raise UserError(f"PATH: cannot write {path}: {error.strerror}") from error
    return name


def _check_name(name: str, package: str) -> None:
    # The table of commands imports this module.
    from pyext.cli.app import command_names

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UserError(
            f"PATH: its last part names the method, expected lower-case words joined by hyphens, "
            f"got {name!r}"
        )
    if name in command_names():
        raise UserError(f"PATH: `pyext {name}` is a command already; choose another name")
    if name in methods.names():
        raise UserError(f"PATH: a method {name!r} is installed already; choose another name")
    if keyword.iskeyword(package) or find_spec(package) is not None:
        raise UserError(f"PATH: Python has a {package!r} already; choose another name")


def _fill(folder: Path, name: str, package: str) -> None:
    for template in sorted(TEMPLATES.rglob("*.template")):
        place = template.relative_to(TEMPLATES).with_suffix("")
        target = folder / str(place).replace("__package__", package)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = Template(template.read_text()).substitute(name=name, package=package)
        target.write_text(text)
