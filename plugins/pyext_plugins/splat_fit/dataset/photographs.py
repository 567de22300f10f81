"""What the readers give: photographs with their cameras, split into training and held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pyext.errors import UserError
from pyext_plugins.picture import flatten, open_image
from pyext_plugins.splat_fit.cameras import Camera

BACKGROUNDS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0)}
SMALLEST = 11  # pixels of a side: the window of SSIM


@dataclass(frozen=True)
class Options:
    """How photographs are read.

    Args:
        resolution: larger photographs are scaled down until no side has more pixels.
        background: black or white; what transparent pixels are put on, and renders too.
        test_every: every so many photographs, in order of their names, one is held out; 0 for
            none. Data with a split of its own keep it.

    Raises:
        UserError: a value is outside its range.
    """

    resolution: int = 1024
    background: str = "black"
    test_every: int = 8

    def __post_init__(self) -> None:
        if not SMALLEST <= self.resolution <= 1 << 14:
            raise UserError(
                f"--resolution: expected {SMALLEST} to {1 << 14}, got {self.resolution}"
            )
        if self.background not in BACKGROUNDS:
            raise UserError(
                f"--background: expected {' or '.join(BACKGROUNDS)}, got {self.background!r}"
            )
        if self.test_every < 0 or self.test_every == 1:
            raise UserError(
                f"--test-every: expected 0 for none or at least 2, got {self.test_every}"
            )


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph, uint8 [H, W, 3], and the camera that took it."""

    name: str
    pixels: Tensor
    camera: Camera

    def colors(self) -> Tensor:
        """In [0, 1], float32 [H, W, 3]."""
        return self.pixels.float() / 255


@dataclass(frozen=True, eq=False)
class Dataset:
    """Photographs of one scene.

    Args:
        train: to fit.
        test: held out, to measure with.
        background: what is behind the scene, [3].
        points: where surfaces are known to be, float32 [P, 3]; none from data that do not say.
        colors: of the points, in [0, 1], float32 [P, 3].
    """

    train: list[Photograph]
    test: list[Photograph]
    background: Tensor
    points: Tensor
    colors: Tensor

    @property
    def digest(self) -> str:
        """Differs between data that differ."""
        sha = hashlib.sha256()
        for photograph in (*self.train, *self.test):
            sha.update(f"{photograph.name} {list(photograph.pixels.shape)}".encode())
            for tensor in (photograph.pixels, photograph.camera.viewmat, photograph.camera.K):
                sha.update(tensor.contiguous().numpy().tobytes())
        for tensor in (self.background, self.points, self.colors):
            sha.update(tensor.numpy().tobytes())
        return sha.hexdigest()


def load_photograph(
    path: Path, name: str, camera_of: Callable[[int, int], Camera], options: Options
) -> Photograph:
    """Read a photograph and bring it and its camera to the resolution asked for.

    Args:
        path: of the picture file.
        name: of the photograph.
        camera_of: gives the camera for the width and height of the file.
        options: resolution and background.

    Raises:
        UserError: it cannot be read, is tiny, or does not have the size its camera says.
    """
    image = open_image(path, "DATA")
    camera = camera_of(image.width, image.height)
    if image.size != (camera.width, camera.height):
        raise UserError(
            f"DATA: {path} has {image.width} x {image.height} pixels, its camera "
            f"{camera.width} x {camera.height}"
        )
    image.thumbnail((options.resolution, options.resolution), Image.Resampling.LANCZOS)
    if min(image.size) < SMALLEST:
        raise UserError(
            f"DATA: expected at least {SMALLEST} pixels a side, {path} has {image.width} x "
            f"{image.height}"
        )
    pixels = flatten(image, options.background)
    return Photograph(name, pixels, camera.resized(image.width, image.height))


def split(
    photographs: Sequence[Photograph], options: Options
) -> tuple[list[Photograph], list[Photograph]]:
    """Training and held-out photographs: every so many, one is held out."""
    chosen = options.test_every or len(photographs) + 1
    train = [photo for i, photo in enumerate(photographs) if options.test_every == 0 or i % chosen]
    test = [photo for i, photo in enumerate(photographs) if options.test_every and not i % chosen]
    return train, test


def make_dataset(
    train: list[Photograph],
    test: list[Photograph],
    options: Options,
    points: Iterable[Sequence[float]] = (),
    colors: Iterable[Sequence[float]] = (),
) -> Dataset:
    """Join what a reader found.

    Raises:
        UserError: there is nothing to train on.
    """
    if not train:
        raise UserError("DATA: expected photographs to train on, there are none")
    return Dataset(
        train,
        test,
        torch.tensor(BACKGROUNDS[options.background]),
        torch.tensor(list(points), dtype=torch.float32).reshape(-1, 3),
        torch.tensor(list(colors), dtype=torch.float32).reshape(-1, 3),
    )
