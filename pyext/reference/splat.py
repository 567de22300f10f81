"""Gaussian-splat rasterization in plain PyTorch; gradients come from autograd.

The stages `project`, `bin` and `composite` have the signatures of the torch ops
``pyext::splat_project``, ``splat_bin`` and ``splat_composite``, and `rasterization` joins them as
``pyext.ops.splat`` does. Any float dtype, any device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyext.interface.splat import make_rasterization
from pyext.interface.splat_dialects import ALPHA_MIN, TRANSMITTANCE_MIN
from pyext.interface.splat_lists import TILE
from pyext.interface.splat_stages import Stages, rotation_matrix
from pyext.interface.splat_unproject import (
    make_contributors,
    make_lift_features,
    make_unproject,
    make_unproject_cells,
)
from pyext.reference import splat_unproject
from pyext.reference.splat_sh import sh

EXTENT_MAX = 3.33  # sigmas
CIRCLE_EXTENT = 3.0  # sigmas
CIRCLE_FLOOR = 0.1  # least square of the half difference of variances, pixels^4
FIELD_OF_VIEW_MARGIN = 0.15  # of the image size, for the slope clamp of the Jacobian


def covariances(
    covars: Tensor | None, quats: Tensor | None, scales: Tensor | None
) -> tuple[Tensor, Tensor]:
    """World covariances [B, N, 3, 3], and which Gaussians have a valid shape [B, N]."""
    if covars is not None:
        full = covars[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]]
        valid = torch.isfinite(full).all(-1)
        return torch.where(valid[..., None], full, 0).unflatten(-1, (3, 3)), valid
    assert quats is not None and scales is not None
    squared = quats.square().sum(-1)
    valid = torch.isfinite(squared) & (squared > 0) & torch.isfinite(scales).all(-1)
    unit = torch.where(valid[..., None], quats, 1)
    axes = rotation_matrix(unit / unit.norm(dim=-1, keepdim=True))
    axes = axes * torch.where(valid[..., None], scales, 1)[..., None, :]
    full = axes @ axes.mT
    valid = valid & torch.isfinite(full).all((-1, -2))
    return torch.where(valid[..., None, None], full, 0), valid


def _jacobian(
    camera: Tensor, Ks: Tensor, width: int, height: int, ortho: bool
) -> tuple[Tensor, Tensor]:
    """Pixel positions [B, C, N, 2] and the Jacobian [B, C, N, 2, 3], a pinhole's slopes clamped."""
    x, y, z = camera.unbind(-1)
    rows, pixels = [], []
    for axis, (value, size) in enumerate(((x, width), (y, height))):
        focal, centre = Ks[:, :, axis, axis, None], Ks[:, :, axis, 2, None]
        zero = torch.zeros_like(z)
        entries = [zero, zero, zero]
        if ortho:
            slope = value
            entries[axis] = focal + zero
        else:
            slope = value / z
            margin = FIELD_OF_VIEW_MARGIN * size
            inside = slope.maximum(-(centre + margin) / focal)
            inside = inside.minimum((size - centre + margin) / focal)
            entries[axis], entries[2] = focal / z, -focal * inside / z
        rows.append(torch.stack(entries, -1))
        pixels.append(focal * slope + centre)
    return torch.stack(pixels, -1), torch.stack(rows, -2)


def _compensations(sharp: Tensor, det: Tensor, keep: Tensor, rho_min: float) -> Tensor:
    """sqrt(max(rho_min^2, det S / det S')) [B, C, N]; no gradient where rho_min holds it."""
    sharp_det = sharp[..., 0, 0] * sharp[..., 1, 1] - sharp[..., 0, 1].square()
    ratio = torch.where(keep, sharp_det, 1) / torch.where(keep, det, 1)
    moves = ratio > rho_min**2
    return torch.where(moves, torch.where(moves, ratio, 1).sqrt(), rho_min)


def _circle_radii(a: Tensor, c: Tensor, det: Tensor) -> Tensor:
    """Three standard deviations along the longer axis, in both axes [B, C, N, 2]."""
    middle = (a + c) / 2
    longest = middle + (middle.square() - det).clamp(min=CIRCLE_FLOOR).sqrt()
    radius = CIRCLE_EXTENT * longest.clamp(min=0).sqrt()
    return torch.stack([radius, radius], -1)


def project(
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor | None,
    scales: Tensor | None,
    opacities: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    eps2d: float,
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    ortho: bool,
    circle: bool,
    compensate: bool,
    rho_min: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """EWA projection: radii (int32), means2d, depths, conics, compensations; 0 where culled.

    They are [B, C, N, 2], [B, C, N, 2], [B, C, N], [B, C, N, 3] and [B, C, N], the last with N = 0
    unless ``compensate``.
    """
    world, valid = covariances(covars, quats, scales)
    finite = torch.isfinite(means).all(-1)
    # The view's gradient multiplies means even by zero, which not-a-number survives.
    means, valid = torch.where(finite[..., None], means, 0), valid & finite
    rotations, translations = viewmats[..., :3, :3], viewmats[..., :3, 3]
    camera = torch.einsum("bcij,bnj->bcni", rotations, means) + translations[:, :, None]
    depth = camera[..., 2]
    keep = valid[:, None] & (depth >= near_plane) & (depth <= far_plane)
    # Values that are culled later are replaced before they can divide by zero.
    camera = torch.where(keep[..., None], camera, 1)
    pixels, jacobian = _jacobian(camera, Ks, width, height, ortho)
    axes = jacobian @ rotations[:, :, None]
    sharp = axes @ world[:, None] @ axes.mT
    cov2d = sharp + means.new_tensor([[eps2d, 0], [0, eps2d]])
    # What overflows becomes singular, and is culled as such.
    fits = torch.isfinite(cov2d).all(-1, keepdim=True).all(-2, keepdim=True)
    cov2d = torch.where(fits, cov2d, 0)
    a, b, c = cov2d[..., 0, 0], cov2d[..., 0, 1], cov2d[..., 1, 1]
    det = a * c - b * b
    keep = keep & (det > 0) & torch.isfinite(det)

    rho = _compensations(sharp, det, keep, rho_min) if compensate else torch.ones_like(depth)
    extent = torch.full_like(depth, EXTENT_MAX)
    if opacities is not None:
        effective = opacities[:, None] * rho.detach()
        visible = effective >= ALPHA_MIN
        level = 2 * torch.log(torch.where(visible, effective, 1) / ALPHA_MIN)
        extent = level.sqrt().clamp(max=EXTENT_MAX)
        keep = keep & visible
    if circle:
        reach = _circle_radii(a, c, det)
    else:
        reach = extent[..., None] * torch.stack([a, c], -1).clamp(min=0).sqrt()
    radii = torch.ceil(reach).detach()
    size = means.new_tensor([width, height])
    on_image = (pixels + radii > 0) & (pixels - radii < size)
    keep = keep & (radii > radius_clip).any(-1) & on_image.all(-1)

    conics = torch.stack([c, -b, a], -1) / torch.where(keep, det, 1)[..., None]
    zero = means.new_zeros(())
    return (
        torch.where(keep[..., None], radii.clamp(max=2**30), zero).int(),
        torch.where(keep[..., None], pixels, zero),
        torch.where(keep, camera[..., 2], zero),
        torch.where(keep[..., None], conics, zero),
        torch.where(keep, rho, zero) if compensate else rho[..., :0],
    )


def bin(
    means2d: Tensor,
    radii: Tensor,
    depths: Tensor,
    conics: Tensor,
    opacities: Tensor,
    width: int,
    height: int,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tile lists by bounding boxes, front to back; ``exact`` only shortens the kernels' lists."""
    images, n = depths.shape
    device = depths.device
    tiles = radii.new_tensor([-(-width // TILE), -(-height // TILE)])
    visible = (radii > 0).all(-1)
    first = ((means2d - radii) / TILE).clamp(min=0).minimum(tiles.to(means2d)).long()
    last = ((means2d + radii) / TILE).ceil().clamp(min=0).minimum(tiles.to(means2d)).long()
    box = torch.where(visible[..., None], last - first, 0)

    # Visible ones by depth, then the others; ties by index.
    depth = torch.where(visible, depths, torch.inf)
    image = torch.arange(images, device=device)[:, None]
    order = (depth.argsort(dim=1, stable=True) + n * image).flatten()
    box, first = box.flatten(0, 1)[order], first.flatten(0, 1)[order]
    counts = box.prod(-1)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    rank = torch.repeat_interleave(torch.arange(images * n, device=device), counts)
    step = torch.arange(int(starts[-1]), device=device) - starts[rank]
    x = first[rank, 0] + step % box[rank, 0].clamp(min=1)
    y = first[rank, 1] + step // box[rank, 0].clamp(min=1)
    tile = (order[rank] // max(n, 1)) * int(tiles.prod()) + y * tiles[0] + x

    by_tile = tile.argsort(stable=True)
    position = torch.empty_like(by_tile)
    position[by_tile] = torch.arange(by_tile.numel(), device=device)
    sizes = torch.bincount(tile, minlength=images * int(tiles.prod()))
    tile_offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    ids = order[rank][by_tile]
    return tile_offsets, ids.int(), order.int(), starts, position.int()


class _PerPixel(torch.autograd.Function):
    """Means [G, 2] repeated for P pixels; `absolute` [G, 2] gets the sum of absolute gradients."""

    @staticmethod
    def forward(ctx: Any, means2d: Tensor, absolute: Tensor, pixels: int) -> Tensor:
        return means2d.expand(pixels, *means2d.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        return gradient.sum(0), gradient.abs().sum(0), None


def composite_tile(
    pixels: Tensor,
    alpha_max: float,
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    features: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Colours [P, D], transmittances [P] and last contributors [P] of P pixels and G Gaussians.

    Means2d are [G, 2], or [P, G, 2] for gradients of single pixels.
    """
    dx, dy = (means2d - pixels[:, None]).unbind(-1)
    a, b, c = conics.unbind(-1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (opacities * torch.exp(-sigma)).clamp(max=alpha_max)
    alpha = torch.where((sigma >= 0) & (alpha >= ALPHA_MIN), alpha, 0)
    after = torch.cumprod(1 - alpha, dim=1)
    # `after` never rises, so what is kept is a prefix: exactly the sequential rule.
    kept = after > TRANSMITTANCE_MIN
    before = F.pad(after, (1, 0), value=1.0)
    weights = torch.where(kept, alpha, 0) * before[:, :-1]
    transmittance = before.gather(1, kept.sum(1, keepdim=True)).squeeze(1)
    index = torch.arange(alpha.shape[1] + 1, device=alpha.device)
    contributes = F.pad(kept & (alpha > 0), (1, 0), value=True)
    last = torch.where(contributes, index, 0).amax(1) - 1
    return weights @ features, transmittance, last


def make_composite(tile_compositor: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """The stage `composite` around `composite_tile` or a compiled version of it."""

    def composite(
        means2d: Tensor,
        conics: Tensor,
        opacities: Tensor,
        features: Tensor,
        tile_offsets: Tensor,
        tile_ids: Tensor,
        order: Tensor,
        starts: Tensor,
        entries_of: Tensor,
        width: int,
        height: int,
        alpha_max: float,
        absolute: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Front to back, tile by tile: out [I, H, W, D], transmittance and last [I, H, W]."""
        images = features.shape[0]
        flat = [x.flatten(0, 1) for x in (means2d, conics, opacities, features)]
        tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
        offsets, ids = tile_offsets.tolist(), tile_ids.long()
        like: dict[str, Any] = {"dtype": means2d.dtype, "device": means2d.device}
        planes: list[list[Tensor]] = []
        for tile in range(images * tiles_y * tiles_x):
            x0, y0 = tile % tiles_x * TILE, tile // tiles_x % tiles_y * TILE
            x = torch.arange(x0, min(x0 + TILE, width), **like) + 0.5
            y = torch.arange(y0, min(y0 + TILE, height), **like) + 0.5
            pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
            members = ids[offsets[tile] : offsets[tile + 1]]
            points, *others = (values[members] for values in flat)
            if absolute is not None:
                points = _PerPixel.apply(points, absolute.flatten(0, 1)[members], len(pixels))
            out, transmittance, last = tile_compositor(pixels, alpha_max, points, *others)
            last = torch.where(last >= 0, last + offsets[tile], -1)
            planes.append([z.reshape(len(y), len(x), -1) for z in (out, transmittance, last)])
        out, transmittance, last = (
            _join_tiles(plane, tiles_x).reshape(images, height, width, -1)
            for plane in zip(*planes, strict=True)
        )
        return out, transmittance.squeeze(-1), last.squeeze(-1).int()

    return composite


def _join_tiles(tiles: tuple[Tensor, ...], tiles_x: int) -> Tensor:
    rows = [torch.cat(tiles[i : i + tiles_x], 1) for i in range(0, len(tiles), tiles_x)]
    return torch.cat(rows, 0)


composite = make_composite(composite_tile)
rasterization = make_rasterization(Stages(project, sh, bin, composite))
unproject = make_unproject(splat_unproject.unproject)
unproject_cells = make_unproject_cells(
    splat_unproject.unproject_cells, splat_unproject.render_cells
)
lift_features = make_lift_features(project, bin, unproject)
contributors = make_contributors(splat_unproject.contributors)
