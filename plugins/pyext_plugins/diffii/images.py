"""Folders of pictures, a folder for each class, as torchvision's `ImageFolder` has them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pyext.errors import UserError
from pyext_plugins.picture import open_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class PictureFolder:
    """Names of the files of each class, both sorted."""

    root: Path
    files: dict[str, list[str]]

    @property
    def classes(self) -> list[str]:
        return list(self.files)

    def entries(self) -> list[tuple[str, str]]:
        """Class and file name of every picture."""
        return [(name, file) for name, files in self.files.items() for file in files]

    def path(self, name: str, file: str) -> Path:
        return self.root / name / file

    def digest(self) -> str:
        """SHA-256 of all files and their names."""
        found = hashlib.sha256()
        for name, file in self.entries():
            content = hashlib.sha256(self.path(name, file).read_bytes()).hexdigest()
            found.update(f"{name}/{file} {content}\n".encode())
        return found.hexdigest()


def read_folder(root: Path, argument: str = "DATA") -> PictureFolder:
    """List the pictures in the folders of a folder. Hidden files are left out.

    Raises:
        UserError: it is not a folder, it has no folders with pictures, or one of them has none.
    """
    if not root.is_dir():
        raise UserError(f"{argument}: expected a folder with a folder for each class, got {root}")
    found: dict[str, list[str]] = {}
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        names = [p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()]
        found[folder.name] = sorted(name for name in names if not name.startswith("."))
        if not found[folder.name]:
            raise UserError(f"{argument}: {folder} holds no pictures ({', '.join(SUFFIXES)})")
    if not found:
        raise UserError(f"{argument}: expected a folder for each class in {root}, it has none")
    return PictureFolder(root, found)


def load_square(path: Path, size: int, channels: int) -> Tensor:
    """A picture as models take it, float32, [channels, size, size], in [-1, 1].

    It is scaled to a square, as the authors do, whatever its shape; transparent pixels are put on
    white.

    Raises:
        UserError: it cannot be read.
    """
    opened = open_image(path, "DATA", upright=True)
    behind = Image.new("RGBA", opened.size, "white")
    image = Image.alpha_composite(behind, opened).convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image)).view(size, size, channels)
    return pixels.permute(2, 0, 1).float() / 127.5 - 1
