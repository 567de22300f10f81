"""COLMAP's cameras.txt, images.txt and points3D.txt."""

from __future__ import annotations

from pathlib import Path

from pyext_plugins.splat_fit.dataset.colmap_records import CameraRecord, ImageRecord, Points


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def read_cameras(path: Path) -> dict[int, CameraRecord]:
    """Cameras by id."""
    cameras = {}
    for line in filter(str.strip, _lines(path)):
        number, model, width, height, *parameters = line.split()
        cameras[int(number)] = CameraRecord(
            model, int(width), int(height), tuple(map(float, parameters))
        )
    return cameras


def read_images(path: Path) -> list[ImageRecord]:
    """The images; every second line, of points in them, is passed over and may be empty."""
    images = []
    for line in _lines(path)[::2]:
        if line.strip():
            _, *pose, camera, name = line.split(maxsplit=9)
            numbers = tuple(map(float, pose))
            images.append(ImageRecord(name.strip(), int(camera), numbers[:4], numbers[4:]))
    return images


def read_points(path: Path) -> Points:
    """The points and their colours."""
    rows = [tuple(map(float, line.split()[1:7])) for line in filter(str.strip, _lines(path))]
    return [row[:3] for row in rows], [tuple(c / 255 for c in row[3:]) for row in rows]
