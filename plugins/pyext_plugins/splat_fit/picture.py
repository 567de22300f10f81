"""Pictures from and to files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from pyext.errors import UserError
from pyext.files import whole_file

MAX_SIDE = 1024  # pixels; larger pictures are scaled down


def load_picture(path: Path) -> Tensor:
    """Read any picture file that Pillow reads.

    Transparent pixels are put on black, the orientation noted by the camera is applied, and
    pictures with a side over `MAX_SIDE` pixels are scaled down to it.

    Returns:
        Colours in [0, 1], float32, [H, W, 3].

    Raises:
        UserError: there is no such file, or it is not a picture.
    """
    if not path.is_file():
        raise UserError(f"IMAGE: expected a picture file, {path} is not a file")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGBA")
    except UnidentifiedImageError as error:
        raise UserError(f"IMAGE: expected a picture, {path} is none that Pillow reads") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"IMAGE: {path} is too large: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"IMAGE: {path} cannot be read to its end: {error}") from error
    if not (image.width and image.height):
        raise UserError(f"IMAGE: {path} has {image.width} x {image.height} pixels")
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    rgb = np.asarray(Image.alpha_composite(black, image).convert("RGB"))
    return torch.from_numpy(rgb.copy()).float() / 255


def to_bytes(picture: Tensor) -> Tensor:
    """Colours to eight bits, uint8, the same shape; values outside [0, 1] are clipped."""
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


def psnr(picture: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two pictures, as eight-bit files hold them."""
    difference = to_bytes(picture).double() - to_bytes(target).double()
    error = float((difference / 255).square().mean())
    return 10 * float(-np.log10(max(error, 1e-12)))


def save_png(path: Path, *pictures: Tensor) -> None:
    """Write uint8 pictures [H, W, 3] of one height side by side, with a white gap between."""
    height = pictures[0].shape[0]
    gap = torch.full((height, 8, 3), 255, dtype=torch.uint8)
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    with whole_file(path) as temporary:
        Image.fromarray(torch.cat(parts, 1).numpy()).save(temporary, format="PNG")
