"""Photographs with known cameras: a folder of `transforms.json`, of COLMAP, or one `.npz`."""

from __future__ import annotations

from pathlib import Path

from pyext.errors import UserError
from pyext_plugins.splat_fit.dataset import arrays, colmap, transforms
from pyext_plugins.splat_fit.dataset.photographs import BACKGROUNDS, Dataset, Options, Photograph

__all__ = ["BACKGROUNDS", "Dataset", "Options", "Photograph", "load_dataset"]


def load_dataset(path: Path, options: Options) -> Dataset:
    """Read photographs and cameras from whichever kind of data lies there.

    Args:
        path: a folder with `transforms.json` or `transforms_train.json`; a folder with a COLMAP
            reconstruction; or a `.npz` of arrays ``images``, ``poses`` and ``focal``.
        options: resolution, background and which views are held out.

    Raises:
        UserError: none of these lies there, or something in it is wrong.
    """
    if path.suffix.lower() == ".npz":
        return arrays.read(path, options)
    if not path.is_dir():
        raise UserError(f"DATA: expected a folder or a .npz file, {path} is neither")
    if transforms.found(path):
        return transforms.read(path, options)
    if colmap.found(path):
        return colmap.read(path, options)
    raise UserError(
        f"DATA: {path} has neither transforms.json, transforms_train.json nor COLMAP's "
        "cameras, images and points3D in sparse/0, sparse or itself"
    )
