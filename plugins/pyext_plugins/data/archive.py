"""One file or folder out of an archive; nothing else in it is looked at."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from pyext.errors import UserError, one_line
from pyext_plugins.data.registry import Row


def extract(archive: Path, row: Row, target: Path) -> None:
    """Write the row's member to ``target``, which does not exist yet.

    Names in the archive decide nothing outside ``target``, links are not followed, and not more is
    written than the row's size.

    Raises:
        UserError: the archive cannot be read, lacks the member, or holds more than the row says.
    """
    room = row.size
    try:
        for name, content in _regular_files(archive):
            place = _place(name, row, target)
            if place is not None:
                place.parent.mkdir(parents=True, exist_ok=True)
                room -= _copy(content, place, room, row)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise UserError(f"{row.name}: {archive.name} cannot be read: {one_line(error)}") from error
    if not target.exists():
        raise UserError(f"{row.name}: {archive.name} holds no {row.member}")


def _regular_files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents; links, devices and folders are left out."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                if not entry.is_dir():
                    with opened.open(entry) as content:
                        yield entry.filename, content
    else:
        with tarfile.open(archive) as packed:
            for member in packed:
                if member.isreg() and (unpacked := packed.extractfile(member)):
                    yield member.name, unpacked


def _place(name: str, row: Row, target: Path) -> Path | None:
    """Where a file of this name goes, if it is of the row."""
    if not row.is_folder:
        return target if name == row.member else None
    if not name.startswith(row.member):
        return None
    inside = name.removeprefix(row.member)
    # Not only what is a path upwards here, but on every system.
    if ".." in inside.split("/") or inside.startswith("/") or "\\" in inside or ":" in inside:
        raise UserError(f"{row.name}: the archive holds a file with the unsafe name {name!r}")
    return target / PurePosixPath(inside)


def _copy(content: IO[bytes], place: Path, room: int, row: Row) -> int:
    """Write at most ``room`` bytes, and return how many there were."""
    with place.open("wb") as file:
        while block := content.read(1 << 20):
            if file.tell() + len(block) > room:
                raise UserError(f"{row.name}: the archive holds more than {row.size} bytes of it")
            file.write(block)
        return file.tell()
