"""From pixels back to Gaussians: public functions and checks, over any implementation of the ops.

A Gaussian i has the weight w_i(p) = alpha_i(p) T_i(p) at pixel p, the compositor's: `rasterization`
over black is A f with A = (w_i(p)). Lifting values M from the pixels is A^T M, or the same with
every weight that is not zero taken as one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyext.interface.splat import make_rasterization
from pyext.interface.splat_meta import Footprints
from pyext.interface.splat_stages import Stages, no_colors

MODES = ("weight", "count")
NORMALIZE = ("mass", "count", None)


class Lifted(NamedTuple):
    """What `unproject` returns: ... is [..., N], or [..., C, N] per view."""

    values: Tensor  # [..., N, D]
    mass: Tensor  # [..., N]: sum of weights
    # Takes the place of a method of tuples that nobody misses here.
    count: Tensor  # type: ignore[assignment]  # [..., N] int32: number of pixels contributed to


class Contributors(NamedTuple):
    """The Gaussians behind each pixel, by descending weight."""

    ids: Tensor  # [..., C, H, W, k] int32: index in 0 .. N - 1, -1 where there are fewer than k
    weights: Tensor  # [..., C, H, W, k], 0 where there are fewer than k
    count: Tensor  # type: ignore[assignment]  # [..., C, H, W] int32: of all contributors


@dataclass(frozen=True)
class Cells:
    """Lifting from grids of cells to Gaussians, and rendering back, as two sparse matrices.

    V views of N Gaussians, each with a grid of height x width cells; cells are numbered view by
    view, row-major. Products take any number of channels at the price of a sparse product.
    """

    lift_matrix: Tensor  # [N, V cells], torch.sparse_csr; rows are normalised
    render_matrix: Tensor  # [V cells, N], torch.sparse_csr
    mass: Tensor  # [N]: sum of weights over all pixels of all views
    count: Tensor  # [N] int32: number of pixels contributed to
    views: int
    height: int
    width: int

    def lift(self, maps: Tensor) -> Tensor:
        """Maps [V, height, width, D] to Gaussians [N, D].

        As `unproject` of the maps resized to the images by torch's bilinear rule
        (align_corners=False).

        Raises:
            ValueError: the maps have another shape.
        """
        grid = (self.views, self.height, self.width)
        if maps.dim() != 4 or tuple(maps.shape[:3]) != grid:
            raise ValueError(f"maps: expected shape {[*grid, 'D']}, got {list(maps.shape)}")
        return self.lift_matrix @ maps.reshape(-1, maps.shape[-1])

    def render(self, values: Tensor) -> Tensor:
        """Values of Gaussians [N, D] to maps [V, height, width, D], over black.

        As rendered images resized to the grid by torch's bilinear rule (align_corners=False, no
        antialiasing).

        Raises:
            ValueError: the values have another shape.
        """
        n = self.render_matrix.shape[1]
        if values.dim() != 2 or values.shape[0] != n:
            raise ValueError(f"values: expected shape [{n}, 'D'], got {list(values.shape)}")
        return (self.render_matrix @ values).unflatten(0, (self.views, self.height, self.width))


def _footprints(meta: dict[str, Any]) -> Footprints:
    footprints = meta.get("footprints") if isinstance(meta, dict) else None
    if not isinstance(footprints, Footprints):
        raise ValueError(
            "meta: needs 'footprints'; pass the dict that `rasterization` returned with meta='full'"
        )
    return footprints


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected one of {known}, got {value!r}")


def _flat_mask(mask: Tensor | None, drawn: Footprints) -> Tensor | None:
    if mask is None:
        return None
    if tuple(mask.shape) != drawn.image_shape:
        raise ValueError(
            f"mask: expected shape {list(drawn.image_shape)} as the views of `meta`, "
            f"got {list(mask.shape)}"
        )
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected dtype torch.bool, got {mask.dtype}")
    return mask.reshape(-1, drawn.height, drawn.width)


def _check_values(values: Tensor, drawn: Footprints) -> None:
    expected = drawn.image_shape
    if values.dim() != len(expected) + 1 or tuple(values.shape[:-1]) != expected:
        raise ValueError(
            f"values: expected shape {[*expected, 'D']} as the views of `meta`, "
            f"got {list(values.shape)}"
        )
    like = drawn.means2d
    if values.device != like.device:
        raise ValueError(f"values: expected device {like.device} like means2d, got {values.device}")
    if values.dtype != like.dtype:
        raise TypeError(f"values: expected dtype {like.dtype} like means2d, got {values.dtype}")


def _divisor(normalize: str, mass: Tensor, count: Tensor) -> Tensor:
    """What to divide by; one where there is nothing to divide."""
    by = mass if normalize == "mass" else count.to(mass.dtype)
    return torch.where(by > 0, by, 1)


def make_unproject(op: Callable[..., Any]) -> Callable[..., Lifted]:
    """`unproject` over an op with the signature of ``pyext::splat_unproject``."""

    def unproject(
        values: Tensor,
        meta: dict[str, Any],
        *,
        mode: str = "weight",
        normalize: str | None = "mass",
        mask: Tensor | None = None,
        per_view: bool = False,
    ) -> Lifted:
        """Lift pixel values to the Gaussians that were drawn there.

        With w_i(p) the weight of Gaussian i at pixel p in the rendering that ``meta`` is of, and p
        running over the pixels of all views (of one view with ``per_view``), the sum is

        - mode "weight": sum_p w_i(p) values(p), the adjoint of rendering over black;
        - mode "count": sum_p values(p) over the pixels the Gaussian contributes to (alpha at least
          1/255, in front of where the pixel ends).

        It is divided by mass_i = sum_p w_i(p), by the number of pixels count_i, or by nothing.
        Three choices are known from editing scenes by lifted attention maps: "count" by "count" is
        the plain mean that the code of VcEdit computes (Wang et al. 2024, "View-Consistent 3D
        Editing with Gaussian Splatting"); "weight" by "mass" is the weighted mean; "weight" by
        "count" is GaussianEditor's semantic tracing (Chen et al. 2024), whose results shrink with
        the mean weight.

        Args:
            values: [..., C, H, W, D], the views' size, D any number; dtype and device of ``meta``.
            meta: the dict `rasterization` returned.
            mode: "weight" or "count".
            normalize: "mass", "count" or None. A Gaussian that no pixel sees gets 0.
            mask: [..., C, H, W] bool; pixels where it is False contribute nothing, whatever their
                values, and nothing to mass and count. A value that is not a number reaches just
                the Gaussians that contribute to its pixel.
            per_view: keep the views apart instead of summing over them.

        Returns:
            ``Lifted(values, mass, count)``: [..., N, D], [..., N] and int32 [..., N]; with
            ``per_view`` [..., C, N, D], [..., C, N], [..., C, N]. In mode "weight" gradients flow
            to values, means2d, conics and opacities; in mode "count" to nothing, and a backward
            that reaches values raises NotImplementedError.

        Raises:
            ValueError, TypeError: an argument is wrong, or ``meta`` is incomplete; it is named.
        """
        _check_choice("mode", mode, MODES)
        _check_choice("normalize", normalize, NORMALIZE)
        drawn = _footprints(meta)
        _check_values(values, drawn)
        flat_mask = _flat_mask(mask, drawn)
        channels = values.shape[-1]
        flat = values.reshape(-1, drawn.height, drawn.width, channels)
        total, mass, count = op(*drawn.geometry, flat, flat_mask, *drawn.trailing, mode == "count")
        views = (*drawn.views, drawn.gaussians)
        total, mass, count = (
            total.reshape(*views, channels),
            mass.reshape(views),
            count.reshape(views),
        )
        if not per_view:
            total, mass, count = total.sum(-3), mass.sum(-2), count.sum(-2, dtype=torch.int32)
        if normalize is not None:
            total = total / _divisor(normalize, mass, count).unsqueeze(-1)
        return Lifted(total, mass, count)

    return unproject


def _sparse(crow: Tensor, col: Tensor, val: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():  # torch calls the layout a beta, once a process
        warnings.filterwarnings("ignore", "Sparse CSR", UserWarning)
        return torch.sparse_csr_tensor(crow, col, val, shape, check_invariants=False)


def make_unproject_cells(
    unproject_cells_op: Callable[..., Any], render_cells_op: Callable[..., Any]
) -> Callable[..., Cells]:
    """`unproject_cells` over ops with the signatures of ``pyext::splat_unproject_cells`` and
    ``splat_render_cells``."""

    def unproject_cells(
        meta: dict[str, Any],
        height: int,
        width: int,
        *,
        mode: str = "weight",
        normalize: str | None = "mass",
        mask: Tensor | None = None,
    ) -> Cells:
        """Build the matrices that lift grids of cells to Gaussians and render them back.

        Resizing, lifting and rendering are linear. For maps much smaller than the images, such as
        attention maps, their product with the scene's weights is a small sparse matrix, worth
        building once for many channels, layers or steps: with U torch's bilinear upsampling from
        the cells to the pixels and D its downsampling (align_corners=False, no antialiasing),
        ``lift_matrix`` is A^T U, rows normalised, and ``render_matrix`` is D A.

        Args:
            meta: the dict `rasterization` returned, of one scene: no batch dimensions.
            height, width: of the grid, at least 1, any ratio to the images.
            mode, normalize, mask: as in `unproject`; they concern ``lift_matrix``.

        Returns:
            ``Cells``. No gradient flows to the scene.

        Raises:
            ValueError, TypeError: an argument is wrong, or ``meta`` is incomplete; it is named.
        """
        _check_choice("mode", mode, MODES)
        _check_choice("normalize", normalize, NORMALIZE)
        for name, size in (("height", height), ("width", width)):
            if size < 1:
                raise ValueError(f"{name}: expected at least 1 cell, got {size}")
        drawn = _footprints(meta)
        if len(drawn.views) > 1:
            batch = list(drawn.views[:-1])
            raise ValueError(f"meta: expected one scene, got batch dimensions {batch}")
        flat_mask = _flat_mask(mask, drawn)
        geometry = tuple(x.detach() for x in drawn.geometry)
        (cameras,) = drawn.views
        n, cells = drawn.gaussians, cameras * height * width
        crow, col, val, mass, count = unproject_cells_op(
            *geometry, flat_mask, *drawn.trailing, mode == "count", height, width
        )
        mass, count = mass.sum(0), count.sum(0, dtype=torch.int32)
        if normalize is not None:
            divisor = _divisor(normalize, mass, count)
            val = val / divisor.repeat_interleave(crow.diff())
        lift = _sparse(crow, col, val, (n, cells))
        crow, col, val = render_cells_op(*geometry, *drawn.trailing, height, width)
        render = _sparse(crow, col, val, (cells, n))
        return Cells(lift, render, mass, count, cameras, height, width)

    return unproject_cells


def make_contributors(op: Callable[..., Any]) -> Callable[..., Contributors]:
    """`contributors` over an op with the signature of ``pyext::splat_contributors``."""

    def contributors(meta: dict[str, Any], k: int) -> Contributors:
        """The k Gaussians with the largest weights at each pixel.

        Args:
            meta: the dict `rasterization` returned.
            k: at least 1.

        Returns:
            ``Contributors(ids, weights, count)``: int32 [..., C, H, W, k], by descending weight,
            of equal weights the one in front first; [..., C, H, W, k]; int32 [..., C, H, W], the
            number of all contributors. No gradient flows.

        Raises:
            ValueError: ``k`` is too small or ``meta`` incomplete.
        """
        if k < 1:
            raise ValueError(f"k: expected at least 1, got {k}")
        drawn = _footprints(meta)
        ids, weights, count = op(*(x.detach() for x in drawn.geometry), *drawn.trailing, k)
        shape = drawn.image_shape
        return Contributors(
            ids.reshape(*shape, k), weights.reshape(*shape, k), count.reshape(shape)
        )

    return contributors


def _no_image(
    means2d: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, None]:
    """Takes the compositor's place where only its inputs are wanted."""
    width, height = rest[5:7]
    image = (features.shape[0], height, width)
    return features.new_zeros(()).expand(*image, features.shape[2]), features.new_ones(image), None


def make_lift_features(
    project: Callable[..., Any], bin: Callable[..., Any], unproject: Callable[..., Lifted]
) -> Callable[..., Lifted]:
    """`lift_features` over the first two stages of `make_rasterization` and `unproject`."""
    prepare = make_rasterization(Stages(project, no_colors, bin, _no_image))

    def lift_features(
        values: Tensor,
        means: Tensor,
        quats: Tensor | None,
        scales: Tensor | None,
        opacities: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        *,
        covars: Tensor | None = None,
        near_plane: float = 0.01,
        far_plane: float = 1e10,
        radius_clip: float = 0.0,
        eps2d: float = 0.3,
        rasterize_mode: str = "classic",
        camera_model: str = "pinhole",
        mode: str = "weight",
        normalize: str | None = "mass",
        mask: Tensor | None = None,
        per_view: bool = False,
    ) -> Lifted:
        """`unproject` for a scene that has not been rendered: projects and bins, draws nothing.

        Args:
            values: [..., C, H, W, D]; H and W are the size of the views.
            means, quats, scales, opacities, viewmats, Ks, covars, near_plane, far_plane,
                radius_clip, eps2d, rasterize_mode, camera_model: as in `rasterization`.
            mode, normalize, mask, per_view: as in `unproject`.

        Returns:
            As `unproject`; gradients flow on to the scene and the cameras.

        Raises:
            ValueError, TypeError, NotImplementedError: as `rasterization` and `unproject`.
        """
        if values.dim() < 4:
            raise ValueError(f"values: expected shape [..., C, H, W, D], got {list(values.shape)}")
        height, width = values.shape[-3:-1]
        _, _, meta = prepare(
            means,
            quats,
            scales,
            opacities,
            means.new_zeros(()).expand(*means.shape[:-1], 1),
            viewmats,
            Ks,
            width,
            height,
            packed=False,
            near_plane=near_plane,
            far_plane=far_plane,
            radius_clip=radius_clip,
            eps2d=eps2d,
            rasterize_mode=rasterize_mode,
            camera_model=camera_model,
            covars=covars,
        )
        return unproject(values, meta, mode=mode, normalize=normalize, mask=mask, per_view=per_view)

    return lift_features
