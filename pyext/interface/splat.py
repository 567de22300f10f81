"""The signature of `rasterization`, gsplat's, over any implementation of its stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyext.interface.splat_checks import (
    check_arguments,
    check_gradients,
    check_supported,
    check_values,
)
from pyext.interface.splat_dialects import DIALECTS
from pyext.interface.splat_lists import TileLists
from pyext.interface.splat_meta import Footprints, Meta, keep_absgrad, layout, sizes, visible_ids
from pyext.interface.splat_stages import (
    Shape,
    Stages,
    finish,
    plain_colors,
    sh_colors,
    upper_triangle,
    with_depth,
    with_sparse_gradient,
)

Rasterization = Callable[..., tuple[Tensor, Tensor, dict[str, Any]]]


def make_rasterization(stages: Stages) -> Rasterization:
    """Join the stages of a family ``splat`` into gsplat's `rasterization`."""

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
        *,
        compat: str = "gsplat-1.5",
        deterministic: bool = True,
        exact_tiles: bool = True,
        check_finite: bool = False,
        meta: str = "full",
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Render Gaussians through cameras.

        Names, order and defaults of the positional arguments are those of gsplat 1.5.3. ``...``
        stands for any batch dimensions, the same for all tensors; N Gaussians, C cameras, D
        channels, K = (degree + 1)^2 or more coefficients. Tensors share one device and one dtype:
        float32, or float64 on the CPU. Under autocast, half precision is taken as float32.

        Args:
            means: centres in world coordinates, [..., N, 3].
            quats: rotations (w, x, y, z), normalised inside, [..., N, 4]; None with ``covars``.
            scales: standard deviations along the axes, > 0, [..., N, 3]; None with ``covars``.
            opacities: in [0, 1], [..., N].
            colors: without ``sh_degree``, features of any number of channels, [..., N, D] or per
                camera [..., C, N, D]; with it, coefficients [..., N, K, D], [..., C, N, K, D] or,
                shared by the whole batch, [N, K, D].
            viewmats: world-to-camera matrices, x right, y down, z forward, [..., C, 4, 4].
            Ks: intrinsics in pixels, [..., C, 3, 3]. Pixel (j, i) has its centre at
                (j + 0.5, i + 0.5).
            width, height: of the image in pixels.
            near_plane, far_plane: Gaussians outside this range of camera z are culled.
            radius_clip: Gaussians whose extent in pixels is at most this in both axes are culled.
            eps2d: added to the diagonal of the projected covariance, pixels squared.
            sh_degree: 0 to 4; colour is max(0, sum of the basis times coefficients + 0.5).
            packed: the layout of ``meta``: one row for each visible pair of a camera and a
                Gaussian (V of them), or else [..., C, N].
            backgrounds: [..., C, D], behind the colours; black when None.
            render_mode: "RGB", "D" (the sum of weighted depths, camera z), "ED" (that sum over
                alpha: the expected depth), "RGB+D", "RGB+ED" (depth is the last channel).
            sparse_grad: gradients of means, quats and scales hold only the rows of Gaussians that
                some camera sees (COO layout); needs ``packed`` and no batch dimensions.
            absgrad: after backward, ``meta["means2d"].absgrad`` is the sum over pixels of the
                absolute gradient (AbsGS, Ye et al. 2024).
            rasterize_mode: "classic", or "antialiased": opacities are lowered by the factor by
                which ``eps2d`` grew the footprint (Mip-Splatting, Yu et al. 2024).
            camera_model: "pinhole" or "ortho".
            channel_chunk, segmented: accepted; they say how gsplat arranges its work and change
                nothing here.
            covars: covariances in world coordinates instead of quats and scales, [..., N, 3, 3];
                the upper triangle is read.
            compat: whose numbers to give: "gsplat-1.5", "gsplat-main" or "inria"; see
                `pyext.interface.splat_dialects`.
            deterministic: accepted; every backend gives the same bits on every run.
            exact_tiles: list a Gaussian only in the tiles its ellipse reaches, instead of its
                whole bounding box. The image is the same.
            check_finite: refuse values that are not finite, opacities outside [0, 1] and scales
                that are not positive. This reads all inputs; on a GPU it waits for them.
            meta: "full", or "light": only sizes, so that no intermediate result is kept alive.

        Returns:
            ``(colors, alphas, meta)``: [..., C, H, W, X], [..., C, H, W, 1], and a dict in gsplat's
            layout with ``means2d``, ``radii``, ``depths``, ``conics``, ``opacities`` (the effective
            ones), ``batch_ids``, ``camera_ids``, ``gaussian_ids`` (None unless packed),
            ``isect_offsets`` [..., C, tiles_y, tiles_x], sizes, and ``footprints``: what
            `unproject` and `contributors` take. ``tiles_per_gauss``, ``flatten_ids`` and
            ``isect_ids`` are computed when they are read. Gradients flow to means, quats, scales,
            covars, opacities, colors, backgrounds, viewmats and Ks; ``meta["means2d"]`` is on
            their way, so that ``retain_grad`` works on it.

        Raises:
            NotImplementedError: an argument asks for what is not there; it is named.
            ValueError, TypeError: a shape, size, value, dtype or device is wrong; the argument is
                named.
        """
        check_supported(
            compat=compat,
            meta=meta,
            tile_size=tile_size,
            render_mode=render_mode,
            distributed=distributed,
            rasterize_mode=rasterize_mode,
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
            far_plane, sh_degree, backgrounds, covars,
        )  # fmt: skip
        check_gradients(means, sparse_grad, packed)
        check_values(means, quats, scales, opacities, colors, viewmats, Ks, covars, check_finite)
        dialect = DIALECTS[compat]
        antialiased = rasterize_mode == "antialiased"
        if antialiased and dialect.compensation_min is None:
            raise ValueError(f"rasterize_mode: {compat!r} has no 'antialiased' mode")

        batch = means.shape[:-2]
        B, C, N = batch.numel(), viewmats.shape[-3], means.shape[-2]
        shape = Shape(tuple(batch), B, C, N)
        seen: list[Tensor] = []
        if sparse_grad:
            means = with_sparse_gradient(means, seen)
            quats = None if quats is None else with_sparse_gradient(quats, seen)
            scales = None if scales is None else with_sparse_gradient(scales, seen)
        radii, means2d, depths, conics, compensations = stages.project(
            means.reshape(B, N, 3),
            None if covars is None else upper_triangle(covars).reshape(B, N, 6),
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
            camera_model == "ortho",
            dialect.circle,
            antialiased,
            dialect.compensation_min or 0.0,
        )
        if sparse_grad:
            seen.append((radii > 0).all(-1).any(0).any(0).nonzero().squeeze(-1))
        effective = opacities.reshape(B, 1, N).expand(B, C, N)
        if antialiased:
            effective = effective * compensations

        # The compositor takes its means from `exposed`: the tensor a caller may retain_grad.
        visible = None
        if packed and meta == "full":
            visible = visible_ids(radii)
            exposed = means2d.reshape(-1, 2).index_select(0, visible)
            flat = exposed.new_zeros((shape.images * N, 2)).index_copy(0, visible, exposed)
        else:
            exposed = means2d.reshape(*batch, C, N, 2)
            flat = exposed
        absolute = None
        if absgrad and exposed.requires_grad and meta == "full":
            absolute = keep_absgrad(exposed, shape.images, N, visible)

        if sh_degree is None:
            colors = plain_colors(colors, means, shape)
        else:
            colors = sh_colors(stages.sh, sh_degree, means, viewmats, colors, radii, shape)
        features = with_depth(colors, depths.reshape(shape.images, N), render_mode)
        flat_means2d = flat.reshape(shape.images, N, 2)
        flat_conics = conics.reshape(shape.images, N, 3)
        flat_opacities = effective.reshape(shape.images, N)
        lists = TileLists(
            *stages.bin(
                flat_means2d,
                radii.reshape(shape.images, N, 2),
                depths.reshape(shape.images, N),
                flat_conics,
                flat_opacities,
                width,
                height,
                exact_tiles,
            )
        )
        out, transmittance, _ = stages.composite(
            flat_means2d,
            flat_conics,
            flat_opacities,
            features,
            *lists,
            width,
            height,
            dialect.alpha_max,
            absolute,
        )
        if backgrounds is not None:
            backgrounds = backgrounds.reshape(shape.images, backgrounds.shape[-1])
        out = finish(out, transmittance, backgrounds, render_mode)
        render_colors = out.reshape(*batch, C, height, width, out.shape[-1])
        render_alphas = (1 - transmittance).reshape(*batch, C, height, width, 1)
        described = sizes(width, height, B, C)
        if meta == "light":
            return render_colors, render_alphas, described
        footprints = Footprints(
            (*batch, C),
            flat_means2d,
            flat_conics,
            flat_opacities,
            lists,
            width,
            height,
            dialect.alpha_max,
        )
        values = {"radii": radii, "depths": depths, "conics": conics, "opacities": effective}
        described |= layout(values, visible, shape)
        described["means2d"] = exposed
        described["footprints"] = footprints
        tiles_x, tiles_y = described["tile_width"], described["tile_height"]
        described["isect_offsets"] = (
            lists.tile_offsets[:-1].reshape(*batch, C, tiles_y, tiles_x).int()
        )
        return render_colors, render_alphas, Meta(described, visible, depths.detach().flatten())

    return rasterization
