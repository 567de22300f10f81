"""The views of a scene: pinhole cameras of one image size."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyext.errors import UserError, one_line

FIELDS = {"viewmat": (4, 4), "K": (3, 3)}


@dataclass(frozen=True, eq=False)
class Cameras:
    """V pinhole cameras, x right, y down, z forward, as `pyext.ops.splat.rasterization` has them.

    Args:
        viewmats: world-to-camera matrices, float32, [V, 4, 4].
        Ks: intrinsics in pixels, float32, [V, 3, 3].
        width, height: of every image in pixels.

    Raises:
        ValueError: a shape or size is wrong.
    """

    viewmats: Tensor
    Ks: Tensor
    width: int
    height: int

    def __post_init__(self) -> None:
        views = len(self.viewmats)
        for name, tail in (("viewmats", (4, 4)), ("Ks", (3, 3))):
            found = list(getattr(self, name).shape)
            if found != [views, *tail] or not views:
                raise ValueError(f"{name}: expected shape [V, {tail[0]}, {tail[1]}], got {found}")
        for name in ("width", "height"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1 pixel, got {getattr(self, name)}")

    def __len__(self) -> int:
        return len(self.viewmats)

    def __getitem__(self, views: slice) -> Cameras:
        return Cameras(self.viewmats[views], self.Ks[views], self.width, self.height)

    @property
    def extent(self) -> float:
        """Largest distance of a camera from the cameras' centre, in world units."""
        rotations, translations = self.viewmats[:, :3, :3], self.viewmats[:, :3, 3]
        centres = -(rotations.mT @ translations[..., None])[..., 0]
        return float((centres - centres.mean(0)).norm(dim=-1).max())

    def arguments(self) -> dict[str, Any]:
        """What `rasterization` takes of cameras."""
        return {
            "viewmats": self.viewmats,
            "Ks": self.Ks,
            "width": self.width,
            "height": self.height,
        }


def load_cameras(path: Path | str) -> Cameras:
    """Read a JSON list of ``{"viewmat": 4 x 4, "K": 3 x 3, "width": int, "height": int}``.

    Raises:
        UserError: no such file, not such a list, or the cameras' sizes differ.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--cameras: {path} cannot be read: {one_line(error)}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"--cameras: {path}: expected a list of cameras")
    for index, entry in enumerate(entries):
        _check_entry(entry, f"--cameras: {path}: camera {index}")
        if (entry["width"], entry["height"]) != (entries[0]["width"], entries[0]["height"]):
            raise UserError(
                f"--cameras: {path}: camera {index} has {entry['width']} x {entry['height']} "
                f"pixels, camera 0 {entries[0]['width']} x {entries[0]['height']}; expected one "
                "size"
            )
    viewmats = torch.tensor([entry["viewmat"] for entry in entries], dtype=torch.float32)
    Ks = torch.tensor([entry["K"] for entry in entries], dtype=torch.float32)
    return Cameras(viewmats, Ks, entries[0]["width"], entries[0]["height"])


def _check_entry(entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected viewmat, K, width and height, got {entry!r:.40}")
    for name, shape in FIELDS.items():
        try:
            matrix = torch.tensor(entry.get(name), dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{where}: {name}: expected numbers, {shape[0]} rows") from error
        if tuple(matrix.shape) != shape or not matrix.isfinite().all():
            raise UserError(
                f"{where}: {name}: expected {shape[0]} x {shape[1]} finite numbers, got "
                f"{' x '.join(map(str, matrix.shape))}"
            )
    for name in ("width", "height"):
        size = entry.get(name)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UserError(f"{where}: {name}: expected a number of pixels, got {size!r}")
