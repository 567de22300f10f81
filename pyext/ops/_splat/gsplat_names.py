"""gsplat's sub-ops under gsplat's names, for callers who join the stages themselves.

Arguments, order and defaults are those of gsplat 1.5.3; ``...`` are any batch dimensions. Tiles are
16 pixels wide, and packed inputs are not taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyext.interface.splat_checks import check_supported
from pyext.interface.splat_lists import TileLists, lists_from_tiles, tile_bits
from pyext.interface.splat_meta import visible_ids
from pyext.interface.splat_stages import rotation_matrix, upper_triangle

_ops = torch.ops.pyext
_ALPHA_MAX = 0.999


def _flat(tensor: Tensor, name: str, *tail: int) -> Tensor:
    """[..., *tail] with its leading dimensions joined; -1 in ``tail`` is any size."""
    fits = tensor.dim() >= len(tail) and all(
        want in (-1, got) for want, got in zip(tail, tensor.shape[-len(tail) :], strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size < 0 else str(size) for size in tail)
        raise ValueError(f"{name}: expected shape [..., {wanted}], got {list(tensor.shape)}")
    return tensor.reshape(-1, *tensor.shape[-len(tail) :])


def quat_scale_to_covar_preci(
    quats: Tensor,
    scales: Tensor,
    compute_covar: bool = True,
    compute_preci: bool = True,
    triu: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Covariance and precision matrices of rotations [..., 4] and scales [..., 3].

    Returns:
        Two of [..., 3, 3], or with ``triu`` their upper triangles [..., 6]; None where not wanted.
    """
    _flat(quats, "quats", 4)
    _flat(scales, "scales", 3)
    axes = rotation_matrix(torch.nn.functional.normalize(quats, dim=-1))

    def squared(lengths: Tensor) -> Tensor:
        half = axes * lengths.unsqueeze(-2)
        full = half @ half.mT
        return upper_triangle(full) if triu else full

    return (
        squared(scales) if compute_covar else None,
        squared(scales.reciprocal()) if compute_preci else None,
    )


def spherical_harmonics(
    degrees_to_use: int, dirs: Tensor, coeffs: Tensor, masks: Tensor | None = None
) -> Tensor:
    """Sums of the real spherical harmonics up to a degree in directions, [..., D].

    Args:
        degrees_to_use: 0 to 4.
        dirs: directions of any length, [..., 3].
        coeffs: [..., K, D], K at least (degree + 1)^2; the others are not used.
        masks: where to compute, [...]; 0 elsewhere.
    """
    flat = _flat(dirs, "dirs", 3)
    coefficients = _flat(coeffs, "coeffs", -1, -1)
    if coefficients.shape[0] != flat.shape[0]:
        raise ValueError(
            f"coeffs: expected {list(dirs.shape[:-1])} before [K, D] like dirs, "
            f"got {list(coeffs.shape)}"
        )
    radii = None
    if masks is not None:
        if masks.shape != dirs.shape[:-1]:
            raise ValueError(
                f"masks: expected shape {list(dirs.shape[:-1])}, got {list(masks.shape)}"
            )
        radii = masks.reshape(1, 1, -1, 1).expand(1, 1, -1, 2).int()
    centre = flat.new_zeros(1, 1, 3)
    out = _ops.splat_sh(degrees_to_use, flat[None], centre, coefficients[None, None], radii)
    result: Tensor = out.reshape(*dirs.shape[:-1], coeffs.shape[-1])
    return result


def fully_fused_projection(
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor | None,
    scales: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    eps2d: float = 0.3,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    packed: bool = False,
    sparse_grad: bool = False,
    calc_compensations: bool = False,
    camera_model: str = "pinhole",
    opacities: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """EWA projection of Gaussians through cameras (Zwicker et al. 2001).

    Args:
        means: [..., N, 3]; covars: upper triangles [..., N, 6], or quats [..., N, 4] and scales
            [..., N, 3]; viewmats [..., C, 4, 4]; Ks [..., C, 3, 3]; opacities [..., N], which make
            the extent tighter.

    Returns:
        ``radii, means2d, depths, conics, compensations`` in [..., C, N(, k)], or when packed
        ``batch_ids, camera_ids, gaussian_ids`` [V] and the same five with V rows. The last is None
        without ``calc_compensations``.

    Raises:
        NotImplementedError: ``sparse_grad``, or a camera model that is not there.
    """
    check_supported(camera_model=camera_model)
    if sparse_grad:
        raise NotImplementedError("sparse_grad: only `rasterization` takes it, got True")
    batch, N, C = means.shape[:-2], means.shape[-2], viewmats.shape[-3]
    radii, means2d, depths, conics, compensations = _ops.splat_project(
        _flat(means, "means", N, 3),
        None if covars is None else _flat(covars, "covars", N, 6),
        None if quats is None or covars is not None else _flat(quats, "quats", N, 4),
        None if scales is None or covars is not None else _flat(scales, "scales", N, 3),
        None if opacities is None else _flat(opacities, "opacities", N),
        _flat(viewmats, "viewmats", C, 4, 4),
        _flat(Ks, "Ks", C, 3, 3),
        width,
        height,
        eps2d,
        near_plane,
        far_plane,
        radius_clip,
        camera_model == "ortho",
        False,
        calc_compensations,
        0.0,
    )
    values = (radii, means2d, depths, conics, compensations if calc_compensations else None)
    if not packed:
        dims = (*batch, C, N)
        return tuple(None if x is None else x.reshape(*dims, *x.shape[3:]) for x in values)
    ids = visible_ids(radii)
    rows = (None if x is None else x.flatten(0, 2).index_select(0, ids) for x in values)
    image = ids // max(N, 1)
    return image // max(C, 1), image % max(C, 1), ids % max(N, 1), *rows


def isect_tiles(
    means2d: Tensor,
    radii: Tensor,
    depths: Tensor,
    tile_size: int,
    tile_width: int,
    tile_height: int,
    sort: bool = True,
    segmented: bool = False,
    packed: bool = False,
    n_images: int | None = None,
    image_ids: Tensor | None = None,
    gaussian_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of a tile and a Gaussian whose bounding box reaches it.

    Args:
        means2d: pixels, [..., N, 2]; radii: int32, [..., N, 2]; depths: float32, [..., N].
        tile_size: 16. tile_width, tile_height: columns and rows of tiles.
        sort, segmented: accepted; the pairs always come sorted.

    Returns:
        Tiles per Gaussian [..., N] int32; keys [M] int64 (image, tile, then the 32 bits of the
        depth); flat ids i N + n [M] int32.
    """
    check_supported(tile_size=tile_size)
    if packed:
        raise NotImplementedError("packed: only [..., N, k] is supported, got packed rows")
    N = means2d.shape[-2]
    points, sizes = _flat(means2d, "means2d", N, 2), _flat(radii, "radii", N, 2)
    depth = _flat(depths, "depths", N)
    conics, opacities = points.new_zeros(*points.shape[:-1], 3), torch.ones_like(depth)
    lists = TileLists(
        *_ops.splat_bin(
            *(points.detach(), sizes, depth.detach(), conics, opacities),
            *(tile_width * tile_size, tile_height * tile_size, False),
        )
    )
    keys = lists.keys(depth.detach().float().flatten(), len(points))
    return lists.tiles_per_gaussian().reshape(depths.shape), keys, lists.tile_ids


def isect_offset_encode(
    isect_ids: Tensor, n_images: int, tile_width: int, tile_height: int
) -> Tensor:
    """First entry of each tile in sorted keys of `isect_tiles`, [I, tile_height, tile_width]."""
    tiles = tile_width * tile_height
    bits = tile_bits(tiles)
    key = isect_ids >> 32
    tile = (key >> bits) * tiles + (key & ((1 << bits) - 1))
    every = torch.arange(n_images * tiles, device=isect_ids.device)
    offsets = torch.searchsorted(tile, every)
    return offsets.int().reshape(n_images, tile_height, tile_width)


def _with_end(isect_offsets: Tensor, flatten_ids: Tensor) -> Tensor:
    end = isect_offsets.new_tensor([flatten_ids.numel()])
    return torch.cat([isect_offsets.flatten(), end]).long()


def rasterize_to_pixels(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    image_width: int,
    image_height: int,
    tile_size: int,
    isect_offsets: Tensor,
    flatten_ids: Tensor,
    backgrounds: Tensor | None = None,
    masks: Tensor | None = None,
    packed: bool = False,
    absgrad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Front-to-back compositing of projected Gaussians.

    Args:
        means2d [..., N, 2], conics [..., N, 3], colors [..., N, D], opacities [..., N].
        isect_offsets: [..., tile_height, tile_width] int32; flatten_ids: [M] int32.
        backgrounds: [..., D]. masks: tiles to draw, bool, like isect_offsets.

    Returns:
        Colours [..., H, W, D] and alphas [..., H, W, 1].
    """
    check_supported(tile_size=tile_size)
    if packed:
        raise NotImplementedError("packed: only [..., N, k] is supported, got packed rows")
    if absgrad:
        raise NotImplementedError("absgrad: only `rasterization` gives it, got True")
    images, N = means2d.shape[:-2], means2d.shape[-2]
    offsets, ids = _with_end(isect_offsets, flatten_ids), flatten_ids
    if masks is not None:
        sizes = offsets.diff()
        keep = masks.flatten()
        ids = ids[torch.repeat_interleave(keep, sizes)]
        offsets = torch.cat([offsets[:1], torch.where(keep, sizes, 0).cumsum(0)])
    points = _flat(means2d, "means2d", N, 2)
    lists = lists_from_tiles(offsets, ids, points.shape[0] * N)
    out, transmittance, _ = _ops.splat_composite(
        *(points, _flat(conics, "conics", N, 3), _flat(opacities, "opacities", N)),
        *(_flat(colors, "colors", N, -1), *lists, image_width, image_height, _ALPHA_MAX, None),
    )
    if backgrounds is not None:
        background = _flat(backgrounds, "backgrounds", -1)[:, None, None]
        out = torch.addcmul(out, transmittance.unsqueeze(-1), background)
    return (
        out.reshape(*images, *out.shape[1:]),
        (1 - transmittance).reshape(*images, image_height, image_width, 1),
    )
