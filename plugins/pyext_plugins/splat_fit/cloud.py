"""Where the Gaussians of photographs start: on known points, or anywhere the cameras look."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyext.scene import Scene
from pyext.scene.gaussians import SH_C0
from pyext_plugins.splat_fit.cameras import Camera

OPACITY = 0.1
NEIGHBOURS = 3
LEAF = 256  # points at most of a group whose neighbours are searched together


def scene_extent(cameras: Sequence[Camera]) -> float:
    """How far the cameras spread: a tenth more than from their mean to the farthest.

    Kerbl et al.'s unit of length, which step sizes and thresholds of densification scale with.
    """
    positions = torch.stack([camera.position for camera in cameras])
    return 1.1 * float((positions - positions.mean(0)).norm(dim=1).max()) or 1.0


def seen_cube(cameras: Sequence[Camera]) -> tuple[Tensor, float]:
    """The cube that cameras around a scene look at: its centre [3] and half its side.

    The centre is the point nearest to all lines of sight; the side is what the median camera sees
    there. Where no such point lies before the cameras, as when all look the same way, it is as far
    before their mean as they spread.
    """
    positions = torch.stack([camera.position for camera in cameras]).double()
    forward = torch.stack([camera.forward for camera in cameras]).double()
    across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None]
    total = across.mean(0)
    centre = torch.linalg.lstsq(total, (across @ positions[..., None]).mean(0)).solution[:, 0]
    depths = ((centre - positions) * forward).sum(1)
    if torch.linalg.eigvalsh(total)[0] < 1e-3 or depths.median() <= 0:
        depths = torch.full_like(depths, scene_extent(cameras))
        centre = (positions + depths[:, None] * forward).mean(0)
    slopes = [max(c.width / c.K[0, 0], c.height / c.K[1, 1]) / 2 for c in cameras]
    half = (depths * torch.tensor(slopes, dtype=torch.float64)).median()
    return centre.float(), float(half)


def random_cloud(cameras: Sequence[Camera], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points [count, 3] anywhere in `seen_cube`, and colours [count, 3] of any kind."""
    generator = torch.Generator().manual_seed(seed)
    centre, half = seen_cube(cameras)
    places = torch.rand(count, 3, generator=generator)
    return centre + half * (2 * places - 1), torch.rand(count, 3, generator=generator)


def start(points: Tensor, colors: Tensor, sh_degree: int) -> Scene:
    """Round, faint Gaussians on points [N, 3] of colours [N, 3], as large as the gaps between.

    Args:
        sh_degree: of the colour; coefficients beyond the constant one start at zero.
    """
    count = len(points)
    gaps = neighbour_distance(points).clamp(min=1e-7)
    return Scene(
        means=points.clone(),
        scales=gaps.log()[:, None].repeat(1, 3),
        quats=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        opacities=torch.full((count,), OPACITY).logit(),
        sh0=((colors - 0.5) / SH_C0)[:, None],
        shN=torch.zeros(count, (sh_degree + 1) ** 2 - 1, 3),
    )


def neighbour_distance(points: Tensor) -> Tensor:
    """Root mean square distance to the three nearest other points, [N]; one for a lone point."""
    nearest = min(NEIGHBOURS, len(points) - 1)
    if nearest < 1:
        return torch.ones(len(points))
    gaps = torch.empty(len(points))
    for leaf in _leaves(points, torch.arange(len(points))):
        inside = points[leaf]
        # No neighbour is farther than those in the leaf: only what is so near need be searched.
        reach = _nearest(inside, inside, nearest).max()
        low, high = inside.amin(0) - reach, inside.amax(0) + reach
        near = points[((points >= low) & (points <= high)).all(1)]
        gaps[leaf] = _nearest(inside, near, nearest).square().mean(1).sqrt()
    return gaps


def _leaves(points: Tensor, ids: Tensor) -> list[Tensor]:
    """The ids in groups of points that are close: halved along the longer side until small."""
    if len(ids) <= LEAF:
        return [ids]
    chosen = points[ids]
    axis = int((chosen.amax(0) - chosen.amin(0)).argmax())
    halves = ids[chosen[:, axis].argsort()].tensor_split(2)
    return [leaf for half in halves for leaf in _leaves(points, half)]


def _nearest(rows: Tensor, points: Tensor, count: int) -> Tensor:
    """Distances [R, count] from each row to the nearest points other than itself."""
    # Through a matrix product, the small distances would drown in the rounding of large places.
    distances = torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.topk(count + 1, largest=False).values[:, 1:]
