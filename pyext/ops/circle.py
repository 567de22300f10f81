"""Inversion circles: what Diff-II augments small datasets with, on CPU and CUDA.

Wang and Chen 2025, "Inversion Circle Interpolation: Diffusion-based Image Augmentation for
Data-scarce Classification", and the DDIM step that stands before and after it. A result is the
same bits on any number of threads.
"""

from __future__ import annotations

import torch

from pyext.interface.circle import (
    Interpolated,
    ddim_coefficients,
    make_ddim_affine_step,
    make_interp,
    phi_from_lambda,
)
from pyext.ops import _circle  # noqa: F401  (registers fake kernels and gradients)

_ops = torch.ops.pyext

interp = make_interp(_ops.circle_interp, _ops.circle_interp_)
ddim_affine_step = make_ddim_affine_step(_ops.circle_ddim_affine_step)

__all__ = ["Interpolated", "ddim_coefficients", "ddim_affine_step", "interp", "phi_from_lambda"]
