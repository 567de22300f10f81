"""`.ply` in the layout of Kerbl et al. 2023, read from any flavour of the format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from pyext.errors import UserError
from pyext.scene.gaussians import DEGREES, Scene
from pyext.scene.ply_header import Header, read_header

MEANS = ("x", "y", "z")
NORMALS = ("nx", "ny", "nz")  # written as zeros, never read
SH0 = ("f_dc_0", "f_dc_1", "f_dc_2")
SCALES = ("scale_0", "scale_1", "scale_2")
QUATS = ("rot_0", "rot_1", "rot_2", "rot_3")
ROWS = 1 << 14  # at a time: a few megabytes, so that columns are picked from the cache


def _rest(count: int) -> tuple[str, ...]:
    """Coefficients beyond the constant one: channel by channel, 3 x (K - 1) of them."""
    return tuple(f"f_rest_{i}" for i in range(count))


def read(path: Path) -> Scene:
    """Read the Gaussians; properties that a scene does not have are passed over.

    Raises:
        UserError: not a `.ply`, a property is missing, or the file is cut off.
    """
    with path.open("rb") as file:
        header = read_header(file, path)
    present = header.vertex.names or ()
    rest = sum(name.startswith("f_rest_") for name in present)
    if rest % 3 or rest // 3 + 1 not in DEGREES:
        raise UserError(
            f"{path}: expected 0, 9, 24, 45 or 72 properties f_rest_*, a degree of spherical "
            f"harmonics, got {rest}"
        )
    names = (*MEANS, *SCALES, *QUATS, "opacity", *SH0, *_rest(rest))
    for name in names:
        if name not in present:
            raise UserError(f"{path}: its vertices have no property {name}: not a Gaussian scene")
    columns = _ascii_columns if header.format == "ascii" else _binary_columns
    table = torch.from_numpy(columns(path, header, names))
    means, scales, quats, opacity, sh0, sh_rest = table.split([3, 3, 4, 1, 3, rest], 1)
    return Scene(
        means=means.contiguous(),
        scales=scales.contiguous(),
        quats=quats.contiguous(),
        opacities=opacity[:, 0].contiguous(),
        sh0=sh0[:, None].contiguous(),
        shN=sh_rest.unflatten(1, (3, rest // 3)).transpose(1, 2).contiguous(),
    )


def _binary_columns(path: Path, header: Header, names: Sequence[str]) -> np.ndarray:
    wanted = header.offset + header.count * header.vertex.itemsize
    if path.stat().st_size < wanted:
        raise UserError(
            f"{path}: cut off: expected {wanted} bytes for {header.count} Gaussians, got "
            f"{path.stat().st_size}"
        )
    out = np.empty((header.count, len(names)), np.float32)
    if header.count:
        table = np.memmap(path, header.vertex, "r", header.offset, (header.count,))
        for rows in _blocks(header.count):
            block = table[rows]
            for column, name in enumerate(names):
                out[rows, column] = block[name]
    return out


def _ascii_columns(path: Path, header: Header, names: Sequence[str]) -> np.ndarray:
    places = [list(header.vertex.names or ()).index(name) for name in names]
    with path.open("rb") as file:
        file.seek(header.offset)
        lines = filter(bytes.strip, file)  # without empty ones
        chosen = list(islice(lines, header.skip, header.skip + header.count))
    if len(chosen) < header.count:
        raise UserError(f"{path}: cut off: expected {header.count} Gaussians, got {len(chosen)}")
    if not chosen:
        return np.empty((0, len(names)), np.float32)
    try:
        return np.loadtxt(chosen, np.float32, comments=None, usecols=places, ndmin=2)
    except ValueError as error:
        raise UserError(f"{path}: a line is no Gaussian: {error}") from error


def _blocks(count: int) -> Iterator[slice]:
    for begin in range(0, count, ROWS):
        yield slice(begin, min(begin + ROWS, count))


def write(scene: Scene, file: BinaryIO) -> None:
    """Write little-endian binary, float32."""
    rest = 3 * scene.shN.shape[1]
    names = (*MEANS, *NORMALS, *SH0, *_rest(rest), "opacity", *SCALES, *QUATS)
    properties = "".join(f"property float {name}\n" for name in names)
    file.write(
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(scene)}\n"
        f"{properties}end_header\n".encode()
    )
    for rows in _blocks(len(scene)):
        table = torch.cat(
            [
                scene.means[rows],
                torch.zeros_like(scene.means[rows]),
                scene.sh0[rows, 0],
                scene.shN[rows].transpose(1, 2).flatten(1),
                scene.opacities[rows, None],
                scene.scales[rows],
                scene.quats[rows],
            ],
            1,
        )
        file.write(table.detach().cpu().numpy().astype("<f4").tobytes())
