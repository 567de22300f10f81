"""gsplat's sub-ops under gsplat's names, for callers who join the stages themselves.

Arguments, order and defaults are those of gsplat 1.5.3; ``...`` are any batch dimensions. Tiles are
16 pixels wide. Packed rows are V visible pairs of an image and a Gaussian.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyext.interface.splat_checks import check_gradients, check_supported
from pyext.interface.splat_lists import TileLists, check_ids, tile_bits
from pyext.interface.splat_meta import visible_ids
from pyext.interface.splat_stages import rotation_matrix, upper_triangle, with_sparse_gradient

_ops = torch.ops.pyext


def flat(tensor: Tensor, name: str, *tail: int) -> Tensor:
    """[..., *tail] with its leading dimensions joined; -1 in ``tail`` is any size."""
    fits = tensor.dim() >= len(tail) and all(
        want in (-1, got) for want, got in zip(tail, tensor.shape[-len(tail) :], strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size < 0 else str(size) for size in tail)
        raise ValueError(f"{name}: expected shape [..., {wanted}], got {list(tensor.shape)}")
    leading = tensor.shape[: tensor.dim() - len(tail)]
    return tensor.reshape(leading.numel(), *tensor.shape[len(leading) :])


def packed_rows(tensor: Tensor, name: str, *shape: int) -> Tensor:
    """The tensor of packed rows, checked: no dimensions before ``shape``."""
    rows = flat(tensor, name, *shape)
    if tensor.dim() > len(shape):
        raise ValueError(f"{name}: expected packed rows, {len(shape)}-d, got {list(tensor.shape)}")
    return rows[0]


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
    flat(quats, "quats", 4)
    flat(scales, "scales", 3)
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
    directions = flat(dirs, "dirs", 3)
    coefficients = flat(coeffs, "coeffs", -1, -1)
    if coefficients.shape[0] != directions.shape[0]:
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
    centre = directions.new_zeros(1, 1, 3)
    out = _ops.splat_sh(degrees_to_use, directions[None], centre, coefficients[None, None], radii)
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
        sparse_grad: gradients of means, covars, quats and scales hold only the rows of Gaussians
            that some camera sees (COO layout); needs ``packed`` and no batch dimensions.

    Returns:
        ``radii, means2d, depths, conics, compensations`` in [..., C, N(, k)], or when packed
        ``batch_ids, camera_ids, gaussian_ids`` [V] and the same five with V rows. The last is None
        without ``calc_compensations``.

    Raises:
        NotImplementedError: a camera model that is not there.
        ValueError: a shape is wrong, or ``sparse_grad`` lacks what it needs; the argument is named.
    """
    check_supported(camera_model=camera_model)
    check_gradients(means, sparse_grad, packed)
    batch, N, C = means.shape[:-2], means.shape[-2], viewmats.shape[-3]
    seen: list[Tensor] = []
    if sparse_grad:
        means = with_sparse_gradient(means, seen)
        covars, quats, scales = (
            None if x is None else with_sparse_gradient(x, seen) for x in (covars, quats, scales)
        )
    radii, means2d, depths, conics, compensations = _ops.splat_project(
        flat(means, "means", N, 3),
        None if covars is None else flat(covars, "covars", N, 6),
        None if quats is None or covars is not None else flat(quats, "quats", N, 4),
        None if scales is None or covars is not None else flat(scales, "scales", N, 3),
        None if opacities is None else flat(opacities, "opacities", N),
        flat(viewmats, "viewmats", C, 4, 4),
        flat(Ks, "Ks", C, 3, 3),
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
    if sparse_grad:
        seen.append((ids % max(N, 1)).unique())
    rows = (None if x is None else x.flatten(0, 2).index_select(0, ids) for x in values)
    image = ids // max(N, 1)
    return image // max(C, 1), image % max(C, 1), ids % max(N, 1), *rows


def _image_places(image_ids: Tensor, images: int) -> tuple[Tensor, int]:
    """Where packed rows go in [I, n], n the most rows of an image: flat places [V], and n."""
    counts = torch.bincount(image_ids, minlength=images)
    n = int(counts.max()) if images else 0
    by_image = image_ids.argsort(stable=True)
    places = torch.empty_like(by_image)
    first = counts.cumsum(0) - counts
    shift = torch.arange(images, device=image_ids.device) * n - first
    row = torch.arange(len(by_image), device=image_ids.device)
    places[by_image] = row + shift.repeat_interleave(counts)
    return places, n


def _spread(rows: Tensor, places: Tensor, images: int, n: int) -> Tensor:
    """Packed rows [V, k] in [I, n, k], zero elsewhere."""
    spread = rows.new_zeros((images * n, *rows.shape[1:])).index_copy_(0, places, rows.detach())
    return spread.reshape(images, n, *rows.shape[1:])


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
        means2d: pixels, [..., N, 2]; radii: int32, [..., N, 2]; depths: float32, [..., N]. When
            packed, V rows: [V, 2], [V, 2], [V].
        tile_size: 16. tile_width, tile_height: columns and rows of tiles.
        sort, segmented: accepted; the pairs always come sorted.
        n_images, image_ids: of packed rows, the number I of images and the image of each row, int64
            [V], in any order. gaussian_ids: accepted; a row is known by its place.

    Returns:
        Tiles per Gaussian [..., N] or [V] int32; keys [M] int64 (image, tile, then the 32 bits of
        the depth); flat ids i N + n, or places of packed rows, [M] int32.

    Raises:
        ValueError: a shape or an image is wrong, or packed rows come without theirs; the argument
            is named.
    """
    check_supported(tile_size=tile_size)
    n = means2d.shape[-2]
    if packed:
        if n_images is None or image_ids is None:
            missing = "n_images" if n_images is None else "image_ids"
            raise ValueError(f"{missing}: needed when packed, got None")
        images = packed_rows(image_ids, "image_ids", n)
        check_ids("image_ids", images, n_images)
        places, most = _image_places(images, n_images)
        points, sizes, depth = (
            _spread(rows, places, n_images, most)
            for rows in (
                packed_rows(means2d, "means2d", n, 2),
                packed_rows(radii, "radii", n, 2),
                packed_rows(depths, "depths", n),
            )
        )
    else:
        points, sizes = flat(means2d, "means2d", n, 2), flat(radii, "radii", n, 2)
        depth = flat(depths, "depths", n)
    conics, opacities = points.new_zeros(*points.shape[:-1], 3), torch.ones_like(depth)
    lists = TileLists(
        *_ops.splat_bin(
            *(points.detach(), sizes, depth.detach(), conics, opacities),
            *(tile_width * tile_size, tile_height * tile_size, False),
        )
    )
    counts = lists.tiles_per_gaussian()
    keys = lists.keys(depth.detach().float().flatten(), len(points))
    if not packed:
        return counts.reshape(depths.shape), keys, lists.tile_ids
    row_at = torch.empty_like(counts)
    row_at[places] = torch.arange(n, dtype=torch.int32, device=places.device)
    return counts[places], keys, row_at[lists.tile_ids.long()]


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
