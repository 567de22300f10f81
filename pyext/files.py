"""Files that appear whole or not at all, and the folders they go to."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyext.errors import UserError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success move it there, on error remove it.

    The temporary name keeps the suffix of ``path``, so that writers that look at it work.
    """
    handle, name = tempfile.mkstemp(prefix=".", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; the result has the permissions of any new file.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_output_folder(path: Path) -> None:
    """Make the folder, before any work is done that would have nowhere to go.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Only writing tells whether one can: permissions do not show a read-only or full disk.
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(
            f"--output: expected a folder to write to, got {path}: {error.strerror}"
        ) from error


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a new folder beside ``path``; on success move it there, on error remove it.

    Raises:
        UserError: ``path`` exists already.
    """
    if path.exists():
        raise UserError(f"--output: {path} exists already; choose another name, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~mask)
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        temporary.chmod(0o777 & ~mask)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
