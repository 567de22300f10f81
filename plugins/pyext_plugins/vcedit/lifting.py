"""Image maps to Gaussians and back: the primitive both consistency modules stand on.

With w the weight (opacity at the pixel times transmittance in front of it) of Gaussian i at pixel
p of view v, rendering is M_v(p) = sum_i w m_i. Lifting goes the other way, by one of three rules;
sums run over all views and pixels where i contributes at all (alpha >= 1/255):

| rule | m_i | whose |
|---|---|---|
| ``mean`` | sum w M / sum w | the adjoint of rendering, divided by its mass; the default |
| ``count-mean`` | sum M / number of pixels | VcEdit's published code |
| ``sum-over-count`` | sum w M / number of pixels | GaussianEditor, as described |

``mean`` and ``count-mean`` keep maps within their range. ``sum-over-count`` shrinks every value by
the Gaussian's mean weight, and needs a later normalisation to make sense. ``count-mean`` takes a
half-transparent Gaussian in front for as much surface as an opaque one. Which of them the paper
itself states could not be checked against its text.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from pyext.errors import UserError
from pyext.ops.splat import rasterization, unproject, unproject_cells
from pyext.scene import Scene
from pyext_plugins.vcedit.cameras import Cameras

Rule = Literal["mean", "count-mean", "sum-over-count"]

# Arguments of `pyext.ops.splat.unproject`.
UNPROJECT: dict[str, dict[str, Any]] = {
    "mean": {"mode": "weight", "normalize": "mass"},
    "count-mean": {"mode": "count", "normalize": "count"},
    "sum-over-count": {"mode": "weight", "normalize": "count"},
}


@dataclass(frozen=True, eq=False)
class Lifted:
    """Per-Gaussian values.

    Args:
        values: [N, D], 0 where a Gaussian was not seen.
        seen: bool, [N].
        mass: sum of weights over all views and pixels, [N].
        count: number of pixels contributed to, int32, [N].
    """

    values: Tensor
    seen: Tensor
    mass: Tensor
    count: Tensor


def geometry(scene: Scene) -> dict[str, Tensor]:
    """What `rasterization` takes of a scene besides colours."""
    arguments = scene.arguments()
    return {name: arguments[name] for name in ("means", "quats", "scales", "opacities")}


def tile_lists(cameras: Cameras, scene: Scene) -> dict[str, Any]:
    """The ``meta`` of `rasterization`: projected Gaussians and tile lists of every view.

    Raises:
        UserError: no Gaussian is in any view.
    """
    with torch.no_grad():
        blank = scene.means.new_zeros(len(scene), 1)
        meta = rasterization(**geometry(scene), colors=blank, **cameras.arguments())[2]
    if not len(meta["flatten_ids"]):
        raise UserError(
            f"no Gaussian projects into any of the {len(cameras)} views; check view matrices "
            "(world-to-camera, OpenCV axes) and intrinsics"
        )
    return meta


def lift(
    maps: Tensor,
    cameras: Cameras,
    scene: Scene,
    *,
    rule: Rule = "mean",
    resize: Literal["bilinear"] | None = None,
    min_weight: float = 0.0,
    clamp: bool = False,
) -> Lifted:
    """Bring maps of all views to the Gaussians that are seen there.

    Args:
        maps: any channels, float32, [V, h, w, D].
        cameras: V views.
        scene: N Gaussians.
        rule: see the module's table.
        resize: ``"bilinear"`` takes maps of another size than the cameras' images and gives what
            resizing them (bilinearly, align_corners false) first would give; None refuses them.
        min_weight: a Gaussian whose mass is at most this counts as not seen.
        clamp: clip the maps to [0, 1] first.

    Raises:
        ValueError: the maps do not fit the cameras, hold not-a-number, or no Gaussian is seen.

    Warns:
        UserWarning: there is only one view; it is consistent with itself.
    """
    check_rule(rule)
    _check_maps(maps, cameras, resize)
    if clamp:
        maps = maps.clamp(0, 1)
    meta = tile_lists(cameras, scene)
    height, width = maps.shape[1:3]
    if (height, width) == (cameras.height, cameras.width):
        values, mass, count = unproject(maps, meta, **UNPROJECT[rule])
    else:
        cells = unproject_cells(meta, height, width, **UNPROJECT[rule])
        values, mass, count = cells.lift(maps), cells.mass, cells.count
    seen = (count > 0) & (mass > min_weight)
    return Lifted(torch.where(seen[:, None], values, 0), seen, mass, count)


def render_maps(
    values: Lifted | Tensor,
    cameras: Cameras,
    scene: Scene,
    height: int | None = None,
    width: int | None = None,
) -> Tensor:
    """Render per-Gaussian values over black: they fade where the scene is transparent.

    Args:
        values: [N, D], or what `lift` returned.
        cameras, scene: as for `lift`; the cameras may be others.
        height, width: of the maps; the images' size when None. Another size is reached by
            resizing bilinearly, without antialiasing.

    Returns:
        [V, height, width, D].

    Raises:
        ValueError: the scene has another number of Gaussians than the values.
    """
    rows = values.values if isinstance(values, Lifted) else values
    check_unchanged(len(rows), scene)
    size = (height or cameras.height, width or cameras.width)
    maps, _, _ = rasterization(**geometry(scene), colors=rows, **cameras.arguments())
    return maps if size == tuple(maps.shape[1:3]) else resize_bilinear(maps, *size)


def resize_bilinear(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps [V, h, w, D] to [V, height, width, D]; align_corners false, no antialiasing."""
    planes = maps.movedim(-1, 1)
    size = (height, width)
    return F.interpolate(planes, size, mode="bilinear", align_corners=False).movedim(1, -1)


def check_rule(rule: str) -> None:
    """Raises ValueError for a rule that is none."""
    if rule not in get_args(Rule):
        raise ValueError(f"rule: expected one of {', '.join(get_args(Rule))}, got {rule!r}")


def check_views(views: int) -> None:
    """Warns where there is nothing to be consistent with."""
    if views < 2:
        warnings.warn("cameras: with 1 view, consistency between views is vacuous", stacklevel=3)


def check_finite(name: str, values: Tensor) -> None:
    """Raises ValueError for not-a-number in values [V, ...], and says in which view."""
    bad = values.flatten(1).isnan().any(1).nonzero()
    if len(bad):
        raise ValueError(f"{name}: view {int(bad[0])} holds not-a-number")


def check_unchanged(gaussians: int, scene: Scene) -> None:
    """Raises ValueError if the scene was densified or pruned meanwhile."""
    if gaussians != len(scene):
        raise ValueError(
            f"scene changed since lift: {gaussians} Gaussians have values, the scene has "
            f"{len(scene)}"
        )


def _check_maps(maps: Tensor, cameras: Cameras, resize: str | None) -> None:
    if maps.dim() != 4 or len(maps) != len(cameras):
        raise ValueError(f"maps: expected shape [{len(cameras)}, h, w, D], got {list(maps.shape)}")
    if resize not in (None, "bilinear"):
        raise ValueError(f"resize: expected 'bilinear' or None, got {resize!r}")
    height, width = maps.shape[1:3]
    if resize is None and (height, width) != (cameras.height, cameras.width):
        raise ValueError(
            f"maps: {width} x {height} pixels, the cameras' images have {cameras.width} x "
            f"{cameras.height}; pass resize='bilinear' to stretch them"
        )
    check_finite("maps", maps)
    check_views(len(cameras))
