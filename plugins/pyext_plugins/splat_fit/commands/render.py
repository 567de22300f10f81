"""`pyext splat-fit render`: a scene file from anywhere, as a picture or going around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from torch import Tensor

from pyext import scene as scene_files
from pyext.errors import UserError
from pyext.files import whole_file
from pyext_plugins.picture import to_bytes
from pyext_plugins.progress import progress_bar
from pyext_plugins.session import one_line_if_unwritable
from pyext_plugins.splat_fit import cameras
from pyext_plugins.splat_fit.dataset import BACKGROUNDS
from pyext_plugins.splat_fit.viewpoint import bounds, default_eye, turntable

STILL, MOVING = (".png", ".jpg", ".webp"), (".gif", ".webp")
SECONDS = 6.0  # once around
RANGES = {"width": (1, 8192), "height": (1, 8192), "fov": (1, 170), "turntable": (0, 1000)}


def render(
    scene: Annotated[Path, typer.Argument(help="A .ply or .splat file.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Picture file; .gif or .webp for --turntable.")
    ],
    width: Annotated[int, typer.Option(help="In pixels.")] = 800,
    height: Annotated[int, typer.Option(help="In pixels.")] = 600,
    fov: Annotated[float, typer.Option(help="Degrees from left to right.")] = 50.0,
    eye: Annotated[
        str | None, typer.Option(metavar="X,Y,Z", help="Where to look from; else outside.")
    ] = None,
    look_at: Annotated[
        str | None, typer.Option(metavar="X,Y,Z", help="Where to; else the middle of the scene.")
    ] = None,
    up: Annotated[
        str, typer.Option(metavar="X,Y,Z", help="Which way is up; COLMAP's y points down.")
    ] = "0,-1,0",
    background: Annotated[str, typer.Option(help=" or ".join(BACKGROUNDS) + ".")] = "black",
    frames: Annotated[
        int, typer.Option("--turntable", help="Frames of a film that goes once around.")
    ] = 0,
) -> None:
    """Render SCENE to a picture or, with --turntable, to a film."""
    _check_ranges(width=width, height=height, fov=fov, turntable=frames)
    _check_suffix(output, frames)
    if background not in BACKGROUNDS:
        raise UserError(f"--background: expected {' or '.join(BACKGROUNDS)}, got {background!r}")
    upward = _vector("--up", up)
    if not upward.norm() > 0:
        raise UserError(f"--up: expected a direction, got {up}")
    gaussians = scene_files.load(scene)
    centre, radius = bounds(gaussians)
    target = centre if look_at is None else _vector("--look-at", look_at)
    focal = cameras.focal_length(fov, width)
    narrow = cameras.field_of_view(focal, min(width, height))
    first = default_eye(target, radius, upward, narrow) if eye is None else _vector("--eye", eye)
    K = cameras.intrinsics(focal, focal, width / 2, height / 2)
    views = [
        cameras.Camera(cameras.look_at(place, target, upward), K, width, height)
        for place in turntable(first, target, upward, max(frames, 1))
    ]
    behind = torch.tensor(BACKGROUNDS[background])
    with progress_bar("rendering", len(views)) as show, one_line_if_unwritable(output):
        _save(_pictures(gaussians, views, behind, show), output, len(views))
    print(f"{output}: {len(gaussians)} Gaussians, {len(views)} x {width} x {height} pixels")


def _pictures(
    gaussians: scene_files.Scene,
    views: list[cameras.Camera],
    behind: Tensor,
    show: Callable[[int, float | None], None],
) -> Iterator[Image.Image]:
    """One after the other, so that a film need not be held in memory as colours."""
    for number, view in enumerate(views):
        with torch.no_grad():
            picture, _ = cameras.render(gaussians, view, behind)
        yield Image.fromarray(to_bytes(picture).numpy())
        show(number + 1, None)


def _save(pictures: Iterator[Image.Image], path: Path, count: int) -> None:
    with whole_file(path) as temporary:
        first = next(pictures)
        if count == 1:
            first.save(temporary)
        else:
            milliseconds = round(1000 * SECONDS / count)
            first.save(
                temporary, save_all=True, append_images=pictures, duration=milliseconds, loop=0
            )


def _check_ranges(**values: float) -> None:
    for name, value in values.items():
        low, high = RANGES[name]
        if not low <= value <= high:
            raise UserError(f"--{name}: expected {low} to {high}, got {value}")


def _check_suffix(path: Path, frames: int) -> None:
    known = MOVING if frames else STILL
    if path.suffix.lower() not in known:
        what = "a film" if frames else "a picture"
        raise UserError(f"--output: expected {what}, {', '.join(known)}, got {path}")
    if not path.parent.is_dir():
        raise UserError(f"--output: there is no folder {path.parent}")


def _vector(option: str, text: str) -> Tensor:
    try:
        vector = torch.tensor([float(part) for part in text.split(",")])
    except ValueError:
        vector = torch.tensor([])
    if vector.shape != (3,) or not vector.isfinite().all():
        raise UserError(f"{option}: expected three numbers like 0,-1,0, got {text!r}")
    return vector
