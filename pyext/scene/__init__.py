"""Gaussian scenes in files: `.ply` in the layout of Kerbl et al. 2023, and `.splat`."""

from __future__ import annotations

from pathlib import Path

from pyext.errors import UserError
from pyext.files import whole_file
from pyext.scene import ply, splat
from pyext.scene.gaussians import Scene

__all__ = ["SUFFIXES", "Scene", "load", "save"]

_FORMATS = {".ply": ply, ".splat": splat}
SUFFIXES = tuple(_FORMATS)


def load(path: Path | str) -> Scene:
    """Read a scene; the suffix says which format.

    Args:
        path: a `.ply` (ascii or binary, any spherical-harmonics degree up to 4; other properties
            are passed over) or a `.splat` file.

    Raises:
        UserError: another suffix, no such file, or not a whole file of that format.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"{path}: expected a scene file, {' or '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{path}: expected a scene file, there is none")
    try:
        return _FORMATS[path.suffix.lower()].read(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def save(scene: Scene, path: Path | str) -> None:
    """Write a scene, whole or not at all; the suffix says which format.

    A `.ply` (little-endian binary) holds float32 of everything. A `.splat` holds eight bits of
    colour, opacity and rotation, and no view-dependent colour.

    Raises:
        UserError: another suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    with whole_file(path) as temporary, temporary.open("wb") as file:
        _FORMATS[path.suffix.lower()].write(scene, file)
