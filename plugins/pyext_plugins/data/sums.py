"""SHA-256 of files and folders."""

from __future__ import annotations

import hashlib
from pathlib import Path

_BLOCK = 1 << 20  # bytes


def sha256_of(path: Path) -> str:
    """The sum of a file; of a folder, the sum of what ``sha256sum`` prints for its files.

    Of a folder's files there is a line each, ``sum  path/inside/it``, sorted by path.
    """
    if path.is_file():
        return _of_file(path)
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    listing = "".join(f"{_of_file(files[inside])}  {inside}\n" for inside in sorted(files))
    return hashlib.sha256(listing.encode()).hexdigest()


def _of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
