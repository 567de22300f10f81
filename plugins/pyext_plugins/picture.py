"""Pictures from and to files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from pyext.errors import UserError
from pyext.files import whole_file

MAX_SIDE = 1024  # pixels; larger pictures are scaled down
MAX_ROW = 1200  # pixels; longer rows of pictures are scaled down
GAP = 8  # pixels between the pictures of a row


def load_picture(path: Path) -> Tensor:
    """Read any picture file that Pillow reads.

    Transparent pixels are put on black, the orientation noted by the camera is applied, and
    pictures with a side over `MAX_SIDE` pixels are scaled down to it. Of several frames the first
    is taken.

    Returns:
        Colours in [0, 1], float32, [H, W, 3].

    Raises:
        UserError: there is no such file, it is not a picture, or it has more pixels than Pillow
            thinks safe to open.
    """
    image = open_image(path, "IMAGE", upright=True)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return flatten(image, "black").float() / 255


def open_image(path: Path, argument: str, upright: bool = False) -> Image.Image:
    """Read a picture file as eight-bit RGBA; ``upright`` applies the orientation noted in it.

    Raises:
        UserError: as `load_picture`; the message begins with ``argument``.
    """
    if not path.is_file():
        raise UserError(f"{argument}: expected a picture file, {path} is not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                turned = ImageOps.exif_transpose(opened) if upright else opened
                image = _eight_bits(turned).convert("RGBA")
    except UnidentifiedImageError as error:
        raise UserError(
            f"{argument}: expected a picture, {path} is none that Pillow reads"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise UserError(f"{argument}: expected at most {limit} pixels, {path}: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{argument}: {path} cannot be read: {error}") from error
    if not (image.width and image.height):
        raise UserError(f"{argument}: {path} has {image.width} x {image.height} pixels")
    return image


def flatten(image: Image.Image, background: str) -> Tensor:
    """Put an RGBA picture on a colour that Pillow knows by name; uint8, [H, W, 3]."""
    behind = Image.new("RGBA", image.size, background)
    return torch.from_numpy(np.array(Image.alpha_composite(behind, image).convert("RGB")))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey pictures of sixteen bits scaled to eight, where Pillow would clip them to white."""
    if image.mode == "F":
        raise ValueError("it has floating-point pixels, expected 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image).astype(np.float32) / 257
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))


def to_bytes(picture: Tensor) -> Tensor:
    """Colours to eight bits, uint8, the same shape; values outside [0, 1] are clipped."""
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


def psnr(picture: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two pictures, as eight-bit files hold them."""
    difference = to_bytes(picture).double() - to_bytes(target).double()
    error = float((difference / 255).square().mean())
    return 10 * float(-np.log10(max(error, 1e-12)))


def save_png(path: Path, picture: Tensor) -> None:
    """Write a uint8 picture [H, W, 3]."""
    _write(path, Image.fromarray(picture.numpy()))


def save_row(path: Path, pictures: Sequence[Tensor]) -> None:
    """Write uint8 pictures [H, W, 3] of one height side by side, at most `MAX_ROW` pixels long."""
    gap = torch.full((pictures[0].shape[0], GAP, 3), 255, dtype=torch.uint8)
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    row = Image.fromarray(torch.cat(parts, 1).numpy())
    row.thumbnail((MAX_ROW, row.height), Image.Resampling.LANCZOS)
    _write(path, row)


def _write(path: Path, image: Image.Image) -> None:
    with whole_file(path) as temporary:
        image.save(temporary, format="PNG")
