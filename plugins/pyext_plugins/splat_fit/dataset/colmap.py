"""A sparse reconstruction of COLMAP (Schoenberger and Frahm 2016), text or binary."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import torch

from pyext.errors import UserError
from pyext_plugins.splat_fit.cameras import Camera, intrinsics
from pyext_plugins.splat_fit.dataset import colmap_binary, colmap_text
from pyext_plugins.splat_fit.dataset.colmap_records import CameraRecord, ImageRecord
from pyext_plugins.splat_fit.dataset.photographs import (
    Dataset,
    Options,
    load_photograph,
    make_dataset,
    split,
)

PLACES = ("sparse/0", "sparse", ".")
READERS = {".bin": colmap_binary, ".txt": colmap_text}


@dataclass(frozen=True)
class _Model:
    folder: Path
    suffix: str

    def path(self, name: str) -> Path:
        return self.folder / f"{name}{self.suffix}"


def _locate(folder: Path) -> _Model | None:
    for place in PLACES:
        for suffix in READERS:
            model = _Model(folder / place, suffix)
            if model.path("cameras").is_file() and model.path("images").is_file():
                return model
    return None


def found(folder: Path) -> bool:
    """Whether a reconstruction lies there."""
    return _locate(folder) is not None


def read(folder: Path, options: Options) -> Dataset:
    """Read photographs from ``folder``/images, cameras, and points where there are any.

    Raises:
        UserError: a camera is not a pinhole, a file is cut off, a picture is missing.
    """
    model = _locate(folder)
    if model is None:
        raise UserError(f"DATA: {folder} has no reconstruction of COLMAP")
    reader = READERS[model.suffix]
    try:
        cameras = reader.read_cameras(model.path("cameras"))
        images = reader.read_images(model.path("images"))
        has_points = model.path("points3D").is_file()
        points, colors = reader.read_points(model.path("points3D")) if has_points else ([], [])
    except (struct.error, ValueError, IndexError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"DATA: {model.folder} cannot be read: {error}") from error
    photographs = []
    for image in sorted(images, key=lambda image: image.name):
        if image.camera not in cameras:
            raise UserError(f"DATA: {image.name} has camera {image.camera}, which is not there")
        camera = _camera(image, cameras[image.camera])
        path = folder / "images" / image.name
        photographs.append(load_photograph(path, image.name, lambda *_, c=camera: c, options))
    train, test = split(photographs, options)
    return make_dataset(train, test, options, points, colors)


def _camera(image: ImageRecord, record: CameraRecord) -> Camera:
    return Camera(_viewmat(image), intrinsics(*_pinhole(record)), record.width, record.height)


def _pinhole(record: CameraRecord) -> tuple[float, float, float, float]:
    """Focal lengths and principal point."""
    match record.model, record.parameters:
        case "PINHOLE", (fx, fy, cx, cy):
            return fx, fy, cx, cy
        case "SIMPLE_PINHOLE", (f, cx, cy):
            return f, f, cx, cy
        case "SIMPLE_RADIAL", (f, cx, cy, 0.0):
            return f, f, cx, cy
    raise UserError(
        f"DATA: a camera is {record.model} with {list(record.parameters)}, expected PINHOLE, "
        "SIMPLE_PINHOLE, or SIMPLE_RADIAL without distortion; COLMAP's image_undistorter makes them"
    )


def _viewmat(image: ImageRecord) -> torch.Tensor:
    q = torch.tensor(image.quaternion, dtype=torch.float64)
    w, x, y, z = (q / q.norm()).tolist()
    viewmat = torch.eye(4)
    viewmat[:3, :3] = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    viewmat[:3, 3] = torch.tensor(image.translation)
    return viewmat
