"""Files that appear whole or not at all, and the folders they go to."""

from __future__ import annotations

import os
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
