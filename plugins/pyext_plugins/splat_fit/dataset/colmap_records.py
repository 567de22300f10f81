"""What COLMAP says of a camera and of an image, in either of its formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class CameraRecord(NamedTuple):
    """Model by COLMAP's name, size in pixels, parameters in that model's order."""

    model: str
    width: int
    height: int
    parameters: tuple[float, ...]


class ImageRecord(NamedTuple):
    """File name, id of the camera, and world-to-camera pose; the quaternion is (w, x, y, z)."""

    name: str
    camera: int
    quaternion: tuple[float, ...]
    translation: tuple[float, ...]


Points = tuple[
    Sequence[Sequence[float]], Sequence[Sequence[float]]
]  # places, and colours in [0, 1]
