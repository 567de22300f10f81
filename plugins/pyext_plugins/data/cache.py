"""Where fetched data lies, and how it gets there: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pyext.errors import UserError
from pyext_plugins.data.archive import extract
from pyext_plugins.data.download import download
from pyext_plugins.data.registry import Row, find
from pyext_plugins.data.sums import sha256_of


def folder() -> Path:
    """The folder of the data: ``$PYEXT_DATA``, else ``pyext/data`` in the user's cache."""
    chosen = os.environ.get("PYEXT_DATA")
    if chosen:
        return Path(chosen).absolute()
    # As the XDG base directory specification has it: only an absolute path counts.
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "pyext" / "data"


def is_here(name: str) -> bool:
    """Whether the data has been fetched; its sum is not looked at.

    Raises:
        UserError: the name is unknown.
    """
    return _place(find(name)).exists()


def path(name: str) -> Path:
    """The file or folder of this name; what it holds is what the registry says, to the bit.

    Raises:
        UserError: the name is unknown, or the data is not here or damaged; the message has the
            command that mends it.
    """
    row = find(name)
    place = _place(row)
    if not place.exists():
        raise UserError(f"{name} has not been fetched; to mend it: pyext data fetch {name}")
    if sha256_of(place) != row.sha256:
        raise UserError(f"{place} has been changed; to mend it: pyext data fetch {name}")
    return place


def fetch(name: str) -> Path:
    """As `path`, and downloads what is not here or damaged.

    Raises:
        UserError: the name is unknown, the archive cannot be had or is not what the registry says,
            or the folder of the data cannot be written to.
    """
    row = find(name)
    place = _place(row)
    if place.exists() and sha256_of(place) == row.sha256:
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # In the same file system as the place, so that the move is one step.
        with tempfile.TemporaryDirectory(dir=folder(), prefix=".fetch-") as work:
            fresh = _fetched(row, Path(work))
            if place.is_dir():
                place.rename(Path(work, "damaged"))
            fresh.replace(place)
    except OSError as error:
        raise UserError(f"{name}: cannot write to {folder()}: {error}") from error
    return place


def _place(row: Row) -> Path:
    """Under its sum: the data of another release's registry is never taken for this one's."""
    return folder() / f"{row.name}-{row.sha256[:12]}" / row.file_name


def _fetched(row: Row, work: Path) -> Path:
    """The row's file or folder, checked, in the empty folder ``work``."""
    fresh = work / "fresh"
    extract(download(row, work), row, fresh)
    found = sha256_of(fresh)
    if found != row.sha256:
        raise UserError(f"{row.name}: {row.member} has sha256 {found}, expected {row.sha256}")
    return fresh
