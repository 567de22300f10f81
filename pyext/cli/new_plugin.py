"""Writes a plugin package from the templates in `pyext/templates/plugin`."""

from __future__ import annotations

import keyword
import re
import shutil
import tempfile
from pathlib import Path
from string import Template

from pyext.errors import UserError

TEMPLATES = Path(__file__).resolve().parents[1] / "templates" / "plugin"


def write_plugin(path: Path) -> str:
    """Make the folder ``path`` with a whole plugin package, and return the method's name.

    The folder's name names the method; it appears complete or not at all.

    Raises:
        UserError: the folder exists, cannot be made, or its name names no method.
    """
    name = path.resolve().name
    package = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(package):
        raise UserError(
            f"PATH: its last part names the method, expected lower-case words joined by hyphens, "
            f"got {name!r}"
        )
    if path.exists():
        raise UserError(f"PATH: {path} exists; name a folder that does not")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-plugin-") as folder:
            _fill(Path(folder) / name, name, package)
            shutil.move(Path(folder) / name, path)
    except OSError as error:
        raise UserError(f"PATH: cannot write {path}: {error.strerror}") from error
    return name


def _fill(folder: Path, name: str, package: str) -> None:
    for template in sorted(TEMPLATES.rglob("*.template")):
        place = template.relative_to(TEMPLATES).with_suffix("")
        target = folder / str(place).replace("__package__", package)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = Template(template.read_text()).substitute(name=name, package=package)
        target.write_text(text)
