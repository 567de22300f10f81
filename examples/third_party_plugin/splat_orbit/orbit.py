"""The Python API."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyext.errors import UserError
from pyext.files import whole_file
from pyext.ops.splat import rasterization

SIDE = 160  # pixels
DISTANCE = 3.0  # of the camera, in radii of the cloud


def load_points(path: Path) -> tuple[Tensor, Tensor]:
    """Positions and colours, both [N, 3], from a `.npy` file of [N, 3] or [N, 6] numbers.

    Raises:
        UserError: the file is not of this form.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"POINTS: {path} is not a .npy file: {error}") from error
    if not isinstance(array, np.ndarray):  # an archive of several, a .npz
        raise UserError(f"POINTS: {path} is not a .npy file: it holds several arrays")
    if array.ndim != 2 or array.shape[1] not in (3, 6) or not len(array):
        raise UserError(f"POINTS: expected shape [N, 3] or [N, 6], got {list(array.shape)}")
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise UserError(f"POINTS: expected finite numbers, got others in {array.dtype}")
    points = torch.from_numpy(array.astype(np.float32))
    return points[:, :3], points[:, 3:] if array.shape[1] == 6 else torch.ones(len(points), 3)


def orbit(points: Tensor, colors: Tensor, angles: Tensor) -> Tensor:
    """Pictures [A, SIDE, SIDE, 3] in [0, 1] of the cloud, one for each angle in radians [A].

    All views are one call: the angles are its cameras.
    """
    centred = points - points.mean(0)
    radius = centred.norm(dim=-1).max().clamp(min=1e-6)
    n = len(points)
    # Discs that close a surface of n points: their areas add up to the sphere's.
    sigma = radius * min(0.2, 2 / math.sqrt(n))
    views = torch.eye(4).repeat(len(angles), 1, 1)
    views[:, 0, 0] = views[:, 2, 2] = angles.cos()
    views[:, 0, 2], views[:, 2, 0] = angles.sin(), -angles.sin()
    views[:, 2, 3] = DISTANCE * radius
    focal = SIDE * DISTANCE / 2.4
    intrinsics = torch.tensor([[focal, 0, SIDE / 2], [0, focal, SIDE / 2], [0, 0, 1]])
    pictures, _, _ = rasterization(
        means=centred,
        quats=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(n, 1),
        scales=sigma.expand(n, 3),
        opacities=torch.full((n,), 0.9),
        colors=colors,
        viewmats=views,
        Ks=intrinsics.expand(len(angles), 3, 3),
        width=SIDE,
        height=SIDE,
    )
    return pictures.clamp(0, 1)


def save_gif(path: Path, pictures: Tensor) -> None:
    """Write pictures [A, H, W, 3] in [0, 1] as an animation that repeats.

    Raises:
        UserError: the file cannot be written.
    """
    from PIL import Image

    frames = [Image.fromarray(x) for x in (pictures * 255).round().to(torch.uint8).numpy()]
    more = {"save_all": True, "append_images": frames[1:], "duration": 60, "loop": 0}
    try:
        with whole_file(path) as temporary:
            frames[0].save(temporary, format="GIF", **more)
    except OSError as error:
        raise UserError(f"--output: cannot write {path}: {error.strerror or error}") from error
