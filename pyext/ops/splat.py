"""Gaussian-splat rasterization: gsplat's interface, on CPU and CUDA, reproducible to the bit.

Kerbl et al. 2023, "3D Gaussian Splatting for Real-Time Radiance Field Rendering"; Zwicker et al.
2001, "EWA Volume Splatting". Numeric choices (thresholds, extents, culling) are gsplat 1.5's, or
those that ``compat`` names.

And the way back, from pixels to Gaussians: `unproject`, `unproject_cells`, `lift_features`,
`contributors`.
"""

from __future__ import annotations

import torch

from pyext.interface.splat import make_rasterization
from pyext.interface.splat_stages import Stages
from pyext.interface.splat_unproject import (
    Cells,
    Contributors,
    Lifted,
    make_contributors,
    make_lift_features,
    make_unproject,
    make_unproject_cells,
)
from pyext.ops import _splat  # noqa: F401  (registers fake kernels and gradients)
from pyext.ops._autocast import float32_under_autocast
from pyext.ops._splat.gsplat_names import (
    fully_fused_projection,
    isect_offset_encode,
    isect_tiles,
    quat_scale_to_covar_preci,
    spherical_harmonics,
)
from pyext.ops._splat.gsplat_pixels import rasterize_to_indices_in_range, rasterize_to_pixels

_ops = torch.ops.pyext

rasterization = float32_under_autocast(
    make_rasterization(
        Stages(_ops.splat_project, _ops.splat_sh, _ops.splat_bin, _ops.splat_composite)
    )
)
unproject = float32_under_autocast(make_unproject(_ops.splat_unproject))
unproject_cells = make_unproject_cells(_ops.splat_unproject_cells, _ops.splat_render_cells)
lift_features = float32_under_autocast(
    make_lift_features(_ops.splat_project, _ops.splat_bin, unproject)
)
contributors = make_contributors(_ops.splat_contributors)

__all__ = [
    "Cells",
    "Contributors",
    "Lifted",
    "contributors",
    "fully_fused_projection",
    "isect_offset_encode",
    "isect_tiles",
    "lift_features",
    "quat_scale_to_covar_preci",
    "rasterization",
    "rasterize_to_indices_in_range",
    "rasterize_to_pixels",
    "spherical_harmonics",
    "unproject",
    "unproject_cells",
]
