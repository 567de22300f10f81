"""COLMAP's cameras.bin, images.bin and points3D.bin: little-endian, counts first."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from pyext.errors import UserError
from pyext_plugins.splat_fit.dataset.colmap_records import CameraRecord, ImageRecord, Points

# By number: name and how many parameters.
MODELS = (
    *(("SIMPLE_PINHOLE", 3), ("PINHOLE", 4), ("SIMPLE_RADIAL", 4), ("RADIAL", 5), ("OPENCV", 8)),
    *(("OPENCV_FISHEYE", 8), ("FULL_OPENCV", 12), ("FOV", 5), ("SIMPLE_RADIAL_FISHEYE", 4)),
    *(("RADIAL_FISHEYE", 5), ("THIN_PRISM_FISHEYE", 12)),
)
POINT_IN_IMAGE = struct.calcsize("<ddq")
TRACK_ENTRY = struct.calcsize("<ii")


class _Reader:
    def __init__(self, path: Path) -> None:
        self.content, self.place = path.read_bytes(), 0

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.content, self.place)
        self.place += struct.calcsize("<" + layout)
        return values

    def skip_list(self, size: int) -> None:
        """Pass over a count and as many entries of ``size`` bytes."""
        (count,) = self.take("Q")
        self.place += count * size
        if self.place > len(self.content):
            raise ValueError(f"cut off within a list of {count}")

    def text(self) -> str:
        end = self.content.index(b"\0", self.place)
        begin, self.place = self.place, end + 1
        return self.content[begin:end].decode()


def read_cameras(path: Path) -> dict[int, CameraRecord]:
    """Cameras by id."""
    reader = _Reader(path)
    cameras = {}
    for _ in range(reader.take("Q")[0]):
        number, model, width, height = reader.take("iiQQ")
        if not 0 <= model < len(MODELS):
            raise UserError(f"DATA: {path}: expected a camera model 0 to 10, got {model}")
        name, count = MODELS[model]
        cameras[number] = CameraRecord(name, width, height, reader.take(f"{count}d"))
    return cameras


def read_images(path: Path) -> list[ImageRecord]:
    """The images, without the points in them."""
    reader = _Reader(path)
    images = []
    for _ in range(reader.take("Q")[0]):
        _, *pose, camera = reader.take("i7di")
        name = reader.text()
        reader.skip_list(POINT_IN_IMAGE)
        images.append(ImageRecord(name, camera, tuple(pose[:4]), tuple(pose[4:])))
    return images


def read_points(path: Path) -> Points:
    """The points and their colours."""
    reader = _Reader(path)
    points, colors = [], []
    for _ in range(reader.take("Q")[0]):
        _, x, y, z, r, g, b, _ = reader.take("Q3d3Bd")
        reader.skip_list(TRACK_ENTRY)
        points.append((x, y, z))
        colors.append((r / 255, g / 255, b / 255))
    return points, colors
