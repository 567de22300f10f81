"""The interface of Inria's ``diff_gaussian_rasterization`` over ``pyext.ops.splat``.

Swap the import and the rest of a program stays as it is. Differences: any number of precomputed
colour channels, gradients to nothing but tensors (as there), and ``debug``/``prefiltered`` are
accepted without effect.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyext.interface.splat_dialects import DIALECTS
from pyext.interface.splat_lists import TileLists

_ops = torch.ops.pyext
_INRIA = DIALECTS["inria"]
_NEAR, _FAR, _EPS2D = 0.2, 1e10, 0.3


class GaussianRasterizationSettings(NamedTuple):
    """One camera. Matrices are transposed, as that package has them: row vectors from the left."""

    image_height: int
    image_width: int
    tanfovx: float
    tanfovy: float
    bg: Tensor  # [D]
    scale_modifier: float
    viewmatrix: Tensor  # [4, 4] world to camera, transposed
    projmatrix: Tensor  # [4, 4] unused: the field of view says it all
    sh_degree: int
    campos: Tensor  # [3]
    prefiltered: bool = False
    debug: bool = False
    antialiasing: bool = False


class GaussianRasterizer(torch.nn.Module):
    """Renders Gaussians through the camera of its settings."""

    def __init__(self, raster_settings: GaussianRasterizationSettings) -> None:
        super().__init__()
        if raster_settings.antialiasing:
            raise NotImplementedError("antialiasing: only False is supported, got True")
        self.raster_settings = raster_settings

    def _intrinsics(self, like: Tensor) -> Tensor:
        s = self.raster_settings
        fx = s.image_width / (2 * s.tanfovx)
        fy = s.image_height / (2 * s.tanfovy)
        rows = [[fx, 0, s.image_width / 2], [0, fy, s.image_height / 2], [0, 0, 1]]
        return like.new_tensor(rows)

    def markVisible(self, positions: Tensor) -> Tensor:  # noqa: N802  (that package's name)
        """Which points [N, 3] lie in front of the camera, [N] bool."""
        view = self.raster_settings.viewmatrix.mT
        return positions @ view[2, :3] + view[2, 3] > _NEAR

    def forward(
        self,
        means3D: Tensor,  # noqa: N803
        means2D: Tensor,  # noqa: N803
        opacities: Tensor,
        shs: Tensor | None = None,
        colors_precomp: Tensor | None = None,
        scales: Tensor | None = None,
        rotations: Tensor | None = None,
        cov3D_precomp: Tensor | None = None,  # noqa: N803
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Render.

        Args:
            means3D: [N, 3]. means2D: zeros [N, 3] whose gradient, in units of half the image, the
                caller reads. opacities: [N, 1], in [0, 1].
            shs: coefficients [N, K, 3]; or colors_precomp: [N, D].
            scales [N, 3] and rotations [N, 4] (w, x, y, z); or cov3D_precomp: upper triangles
                [N, 6].

        Returns:
            Colour [D, H, W], radii [N] int32 (0 where invisible), depth [1, H, W]: the sum of
            weighted camera z.

        Raises:
            ValueError: both or none of two alternatives are given.
        """
        s = self.raster_settings
        if (shs is None) == (colors_precomp is None):
            raise ValueError("shs, colors_precomp: expected exactly one of them")
        if (cov3D_precomp is None) == (scales is None or rotations is None):
            raise ValueError("scales with rotations, or cov3D_precomp: expected exactly one")
        N = means3D.shape[0]
        viewmat = s.viewmatrix.mT[None, None]
        alphas = opacities.reshape(1, N)
        radii, means2d, depths, conics, _ = _ops.splat_project(
            means3D[None],
            None if cov3D_precomp is None else cov3D_precomp[None],
            None if rotations is None else rotations[None],
            None if scales is None else scales[None] * s.scale_modifier,
            *(alphas, viewmat, self._intrinsics(means3D)[None, None]),
            *(s.image_width, s.image_height, _EPS2D, _NEAR, _FAR, 0.0),
            *(False, _INRIA.circle, False, 0.0),
        )
        # Gradients to means2D count in normalised device coordinates: half an image is one unit.
        half = means3D.new_tensor([s.image_width / 2, s.image_height / 2])
        points = means2d[0] + means2D[None, :, :2] * half
        if shs is not None:
            raw = _ops.splat_sh(s.sh_degree, means3D[None], s.campos.reshape(1, 1, 3),
                                shs[None, None], radii)  # fmt: skip
            colors = (raw[0] + 0.5).clamp_min(0)
        else:
            assert colors_precomp is not None
            colors = colors_precomp[None]
        features = torch.cat([colors, depths[0].unsqueeze(-1)], -1)
        lists = TileLists(
            *_ops.splat_bin(
                points, radii[0], depths[0], conics[0], alphas, s.image_width, s.image_height, True
            )
        )
        out, transmittance, _ = _ops.splat_composite(
            *(points, conics[0], alphas, features, *lists),
            *(s.image_width, s.image_height, _INRIA.alpha_max, None),
        )
        color = torch.addcmul(out[0, ..., :-1], transmittance[0].unsqueeze(-1), s.bg)
        return color.permute(2, 0, 1), radii[0, 0].amax(-1), out[0, ..., -1][None]
