"""`.splat`: 32 bytes per Gaussian and nothing else, as web viewers take them."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from pyext.errors import UserError
from pyext.scene.gaussians import SH_C0, Scene

RECORD = np.dtype(
    [("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)]
)


def read(path: Path) -> Scene:
    """Colours become constant coefficients; what eight bits hold stays what they hold.

    Raises:
        UserError: the size is no multiple of 32 bytes, or the sizes of Gaussians are none.
    """
    size = path.stat().st_size
    if size % RECORD.itemsize:
        raise UserError(
            f"{path}: expected {RECORD.itemsize} bytes per Gaussian, got {size} bytes: "
            "cut off, or not a .splat file"
        )
    table = np.fromfile(path, RECORD)
    # The format has no mark of its own: sizes that are none tell another kind of file.
    if not (np.isfinite(table["scales"]).all() and (table["scales"] >= 0).all()):
        raise UserError(f"{path}: holds Gaussians of negative or infinite size: not a .splat file")
    # Full and no opacity have infinite logits: a quarter of a step off, they round back.
    alpha = table["rgba"][:, 3].clip(0.25, 254.75).astype(np.float32) / 255
    with np.errstate(divide="ignore"):  # a size of zero has the logarithm -inf
        scales = np.log(table["scales"])
    colors = table["rgba"][:, None, :3].astype(np.float32) / 255
    return Scene(
        means=torch.from_numpy(table["means"].astype(np.float32)),
        scales=torch.from_numpy(scales.astype(np.float32)),
        quats=torch.from_numpy(table["quats"].astype(np.float32) / 128 - 1),
        opacities=torch.from_numpy(np.log(alpha / (1 - alpha))),
        sh0=torch.from_numpy((colors - 0.5) / np.float32(SH_C0)),
        shN=torch.zeros(len(table), 0, 3),
    )


def write(scene: Scene, file: BinaryIO) -> None:
    """Write the Gaussians in their order; coefficients beyond the constant one are left out."""
    table = np.empty(len(scene), RECORD)
    table["means"] = _array(scene.means)
    table["scales"] = _array(scene.scales.exp())
    table["rgba"][:, :3] = _bytes(_array(0.5 + SH_C0 * scene.sh0[:, 0]) * 255)
    table["rgba"][:, 3] = _bytes(_array(scene.opacities.sigmoid()) * 255)
    quats = torch.nn.functional.normalize(scene.quats, dim=-1)
    table["quats"] = _bytes(_array(quats) * 128 + 128)
    table.tofile(file)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _bytes(values: np.ndarray) -> np.ndarray:
    return values.round().clip(0, 255).astype(np.uint8)
