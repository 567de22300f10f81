"""gsplat's training strategies without its CUDA extension.

`gsplat.MCMCStrategy` computes two things by that extension alone, and so runs on no CPU, and on no
GPU whose machine cannot compile it. Everything else of gsplat's strategies is plain PyTorch. Run
their steps inside `without_extension`:

    with without_extension():
        strategy.step_post_backward(params, optimizers, state, step, info, lr=lr)

This needs the package ``gsplat``, which importing this module does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from pyext.ops.splat import quat_scale_to_covar_preci


@contextmanager
def without_extension() -> Iterator[None]:
    """While it lasts, gsplat's strategies compute in plain PyTorch, on any device.

    It puts `compute_relocation` of this module and `pyext.ops.splat.quat_scale_to_covar_preci` in
    the place of gsplat's functions of the same names, for all threads of the process.

    Raises:
        ModuleNotFoundError: gsplat is not installed.
    """
    with patch.multiple(
        "gsplat.strategy.ops",
        compute_relocation=compute_relocation,
        quat_scale_to_covar_preci=quat_scale_to_covar_preci,
    ):
        yield


def compute_relocation(
    opacities: Tensor, scales: Tensor, ratios: Tensor, binoms: Tensor
) -> tuple[Tensor, Tensor]:
    """Opacities and sizes of Gaussians that share one's place and together look like it.

    Kheradmand et al. 2024, "3D Gaussian Splatting as Markov Chain Monte Carlo", equation 9.

    Args:
        opacities, scales: of the one, in (0, 1) and > 0, [N] and [N, 3].
        ratios: how many share the place, integers [N]; what is outside 1 to n_max counts as the
            nearer of the two.
        binoms: binomial coefficients n over k, [n_max, n_max].

    Returns:
        Opacities [N] and scales [N, 3].

    Raises:
        ValueError: a shape is wrong; the argument is named.
    """
    n, most = len(opacities), len(binoms)
    shapes = {
        "opacities": (opacities, (n,)),
        "scales": (scales, (n, 3)),
        "ratios": (ratios, (n,)),
        "binoms": (binoms, (most, most)),
    }
    for name, (tensor, shape) in shapes.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
    ratios = ratios.clamp(1, most).long()
    wanted = opacities.double()
    shared = 1 - (1 - wanted) ** (1 / ratios.double())
    k = torch.arange(most, dtype=torch.float64, device=opacities.device)
    # The sum over i below the ratio of (i over k) is a column sum of the table down to the ratio.
    coefficients = binoms.double().cumsum(0)[ratios - 1]
    terms = coefficients * (-1) ** k * shared[:, None] ** (k + 1) / (k + 1).sqrt()
    factor = wanted / terms.sum(1)
    return shared.to(opacities.dtype), (factor[:, None] * scales).to(scales.dtype)
