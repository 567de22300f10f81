"""Gaussian-splat rasterization: gsplat's interface, on CPU and CUDA, reproducible to the bit.

Kerbl et al. 2023, "3D Gaussian Splatting for Real-Time Radiance Field Rendering"; Zwicker et al.
2001, "EWA Volume Splatting". Numeric choices (thresholds, extents, culling) are gsplat 1.5's.
"""

from __future__ import annotations

import torch

from pyext.interface.splat import make_rasterization
from pyext.ops import _splat  # noqa: F401  (registers fake kernels and gradients)
from pyext.ops._autocast import float32_under_autocast

_ops = torch.ops.pyext

rasterization = float32_under_autocast(
    make_rasterization(_ops.splat_project, _ops.splat_bin, _ops.splat_composite)
)

__all__ = ["rasterization"]
