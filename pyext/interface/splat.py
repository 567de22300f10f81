"""The signature of `rasterization`, gsplat's, over any implementation of its three stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyext.interface.splat_checks import check_arguments, check_supported

TILE = 16
ALPHA_MAX = 0.999


class TileLists(NamedTuple):
    """Which Gaussians reach which tile of 16 x 16 pixels, front to back: what `bin` returns.

    I images, N Gaussians, M entries (pairs of a tile and a Gaussian). Flat ids are i N + n.
    """

    tile_offsets: Tensor  # [I tiles + 1] int64: first entry of each tile
    tile_ids: Tensor  # [M] int32: flat ids, tile by tile, front to back within a tile
    order: Tensor  # [I N] int32: flat ids, image by image, visible ones first, front to back
    starts: Tensor  # [I N + 1] int64: entries of order[r] are entries_of[starts[r]:starts[r + 1]]
    entries_of: Tensor  # [M] int32: for each Gaussian in `order`, its positions in tile_ids


Rasterization = Callable[..., tuple[Tensor, Tensor, dict[str, Any]]]


def make_rasterization(
    project: Callable[..., Any], bin: Callable[..., Any], composite: Callable[..., Any]
) -> Rasterization:
    """Join the stages of a family ``splat`` into gsplat's `rasterization`.

    The stages have the signatures of the torch ops ``pyext::splat_project``, ``splat_bin`` and
    ``splat_composite``.
    """

    def rasterization(
        means: Tensor,
        quats: Tensor | None,
        scales: Tensor | None,
        opacities: Tensor,
        colors: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        width: int,
        height: int,
        near_plane: float = 0.01,
        far_plane: float = 1e10,
        radius_clip: float = 0.0,
        eps2d: float = 0.3,
        sh_degree: int | None = None,
        packed: bool = True,
        tile_size: int = 16,
        backgrounds: Tensor | None = None,
        render_mode: str = "RGB",
        sparse_grad: bool = False,
        absgrad: bool = False,
        rasterize_mode: str = "classic",
        channel_chunk: int = 32,
        distributed: bool = False,
        camera_model: str = "pinhole",
        segmented: bool = False,
        covars: Tensor | None = None,
        with_ut: bool = False,
        with_eval3d: bool = False,
        radial_coeffs: Tensor | None = None,
        tangential_coeffs: Tensor | None = None,
        thin_prism_coeffs: Tensor | None = None,
        ftheta_coeffs: Any = None,
        rolling_shutter: Any = None,
        viewmats_rs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Render Gaussians through pinhole cameras.

        Names, order and defaults of the arguments are those of gsplat 1.5.3. ``...`` stands for
        any batch dimensions, the same for all tensors; N Gaussians, C cameras, D channels. Tensors
        share one device and one dtype: float32, or float64 on the CPU. Under autocast, half
        precision is taken as float32.

        Args:
            means: centres in world coordinates, [..., N, 3].
            quats: rotations (w, x, y, z), normalised inside, [..., N, 4]; None with ``covars``.
            scales: standard deviations along the axes, > 0, [..., N, 3]; None with ``covars``.
            opacities: in [0, 1], [..., N].
            colors: features of any number of channels, [..., N, D] or per camera [..., C, N, D].
            viewmats: world-to-camera matrices, x right, y down, z forward, [..., C, 4, 4].
            Ks: intrinsics in pixels, [..., C, 3, 3]. Pixel (j, i) has its centre at
                (j + 0.5, i + 0.5). No gradient flows to them.
            width, height: of the image in pixels.
            near_plane, far_plane: Gaussians outside this range of camera z are culled.
            radius_clip: Gaussians whose extent in pixels is at most this in both axes are culled.
            eps2d: added to the diagonal of the projected covariance, pixels squared.
            packed, channel_chunk, segmented: accepted; they say how gsplat arranges its work and
                change no result here. ``meta`` is always in the layout of ``packed=False``.
            backgrounds: [..., C, D]; black when None.
            covars: covariances in world coordinates instead of quats and scales, [..., N, 3, 3];
                the upper triangle is read.

        Returns:
            ``(colors, alphas, meta)``: [..., C, H, W, D], [..., C, H, W, 1], and a dict with
            ``means2d``, ``radii``, ``depths``, ``conics``, ``opacities`` [..., C, N(, k)], the tile
            lists ``isect_offsets`` [..., C, tiles_y, tiles_x] and ``flatten_ids`` [M], and sizes.
            Gradients flow to means, quats, scales, covars, opacities, colors, backgrounds and
            viewmats, and through ``meta["means2d"]``, ``meta["depths"]`` and ``meta["conics"]``.

        Raises:
            NotImplementedError: an argument asks for what is not there yet; it is named.
            ValueError, TypeError: a shape, size, dtype or device is wrong; the argument is named.
        """
        check_supported(
            sh_degree=sh_degree,
            tile_size=tile_size,
            render_mode=render_mode,
            sparse_grad=sparse_grad,
            absgrad=absgrad,
            rasterize_mode=rasterize_mode,
            distributed=distributed,
            camera_model=camera_model,
            with_ut=with_ut,
            with_eval3d=with_eval3d,
            radial_coeffs=radial_coeffs,
            tangential_coeffs=tangential_coeffs,
            thin_prism_coeffs=thin_prism_coeffs,
            ftheta_coeffs=ftheta_coeffs,
            rolling_shutter=rolling_shutter,
            viewmats_rs=viewmats_rs,
        )
        check_arguments(
            means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane,
            far_plane, backgrounds, covars,
        )  # fmt: skip
        batch = means.shape[:-2]
        N, C, D = means.shape[-2], viewmats.shape[-3], colors.shape[-1]
        B = batch.numel()
        images = B * C

        triangle = None
        if covars is not None:
            rows, columns = torch.triu_indices(3, 3, device=covars.device).unbind()
            triangle = covars.reshape(B, N, 3, 3)[..., rows, columns]
        radii, means2d, depths, conics = project(
            means.reshape(B, N, 3),
            triangle,
            None if quats is None or covars is not None else quats.reshape(B, N, 4),
            None if scales is None or covars is not None else scales.reshape(B, N, 3),
            opacities.reshape(B, N),
            viewmats.reshape(B, C, 4, 4),
            Ks.reshape(B, C, 3, 3),
            width,
            height,
            eps2d,
            near_plane,
            far_plane,
            radius_clip,
        )
        if colors.dim() == means.dim():
            colors = colors.unsqueeze(-3).expand(*batch, C, N, D)
        features = colors.reshape(images, N, D)
        per_image = opacities.reshape(B, 1, N).expand(B, C, N)
        flat_means2d = means2d.reshape(images, N, 2)
        flat_conics = conics.reshape(images, N, 3)
        flat_opacities = per_image.reshape(images, N)
        lists = TileLists(
            *bin(
                flat_means2d,
                radii.reshape(images, N, 2),
                depths.reshape(images, N),
                flat_conics,
                flat_opacities,
                width,
                height,
            )
        )
        out, transmittance, _ = composite(
            flat_means2d, flat_conics, flat_opacities, features, *lists, width, height, ALPHA_MAX
        )
        if backgrounds is not None:
            out = torch.addcmul(
                out, transmittance.unsqueeze(-1), backgrounds.reshape(images, 1, 1, D)
            )
        render_colors = out.reshape(*batch, C, height, width, D)
        render_alphas = (1 - transmittance).reshape(*batch, C, height, width, 1)

        tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
        meta = {
            "radii": radii.reshape(*batch, C, N, 2),
            "means2d": means2d.reshape(*batch, C, N, 2),
            "depths": depths.reshape(*batch, C, N),
            "conics": conics.reshape(*batch, C, N, 3),
            "opacities": per_image.reshape(*batch, C, N),
            "isect_offsets": lists.tile_offsets[:-1].reshape(*batch, C, tiles_y, tiles_x),
            "flatten_ids": lists.tile_ids,
            "tile_width": tiles_x,
            "tile_height": tiles_y,
            "tile_size": TILE,
            "width": width,
            "height": height,
            "n_batches": B,
            "n_cameras": C,
            "tile_lists": lists,
            "alpha_max": ALPHA_MAX,
        }
        return render_colors, render_alphas, meta

    return rasterization
