"""One `.npz` with arrays ``images``, ``poses`` and ``focal``, as NeRF's smallest example has it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from pyext.errors import UserError
from pyext_plugins.splat_fit.cameras import Camera, intrinsics
from pyext_plugins.splat_fit.dataset.photographs import (
    Dataset,
    Options,
    Photograph,
    make_dataset,
    split,
)
from pyext_plugins.splat_fit.dataset.transforms import from_opengl

NAMES = ("images", "poses", "focal")


def read(path: Path, options: Options) -> Dataset:
    """Read images [V, H, W, 3] in [0, 1], poses [V, 4, 4] with y up and z backward, one focal.

    The focal length is in pixels. The resolution stays that of the arrays.

    Raises:
        UserError: no such file, an array is missing or has another shape.
    """
    if not path.is_file():
        raise UserError(f"DATA: expected a folder or a .npz file, {path} is neither")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            missing = [name for name in NAMES if name not in file]
            if missing:
                raise UserError(f"DATA: {path} has no array {missing[0]}")
            images, poses, focal = (file[name] for name in NAMES)
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"DATA: {path} cannot be read: {error}") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"DATA: {path} cannot be read: {error}") from error
    views = len(images) if images.ndim == 4 and images.shape[-1] == 3 else -1
    if poses.shape != (views, 4, 4) or focal.size != 1 or min(images.shape[1:3]) < 11:
        raise UserError(
            f"DATA: {path}: expected images [V, H, W, 3], poses [V, 4, 4] and one focal, got "
            f"{list(images.shape)}, {list(poses.shape)} and {list(focal.shape)}"
        )
    height, width = images.shape[1:3]
    pixels = torch.from_numpy((np.clip(images, 0, 1) * 255).round().astype(np.uint8))
    K = intrinsics(float(focal), float(focal), width / 2, height / 2)
    photographs = []
    for number in range(views):
        try:
            viewmat = from_opengl(torch.from_numpy(poses[number]).double())
        except ValueError as error:
            raise UserError(f"DATA: {path}: view {number}: {error}") from error
        camera = Camera(viewmat, K, width, height)
        photographs.append(Photograph(f"view {number}", pixels[number], camera))
    return make_dataset(*split(photographs, options), options)
