"""How Gaussians become more and fewer: gsplat's own strategies, on the CPU.

Kerbl et al. 2023 (clone, split, prune) and Kheradmand et al. 2024, "3D Gaussian Splatting as
Markov Chain Monte Carlo". gsplat computes two functions of the second by its CUDA extension alone:
those of this module stand in for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from pyext.errors import UserError
from pyext.scene import Scene

NAMES = ("default", "mcmc")
GSPLAT_STEPS = 30_000  # gsplat's numbers are for so many steps; ours scale with the steps there are
EVERY = 100  # steps between two changes of the number of Gaussians
PRESSURE = 0.01  # of mcmc on opacities and sizes
Parameters = dict[str, Tensor]
Optimizers = dict[str, torch.optim.Optimizer]


class Densification:
    """One of gsplat's strategies with its running state.

    Args:
        name: default or mcmc.
        steps: of the whole training.
        most: mcmc adds Gaussians up to this number.
        extent: the scene's unit of length.
    """

    def __init__(self, name: str, steps: int, most: int, extent: float) -> None:
        # Its import takes a second and tells nothing to those who only look at a scene.
        from gsplat.strategy import DefaultStrategy, MCMCStrategy

        self.name = name
        scale = steps / GSPLAT_STEPS
        if name == "default":
            self.strategy = DefaultStrategy(
                refine_start_iter=min(500, int(steps / 10)),
                refine_stop_iter=int(15_000 * scale),
                reset_every=max(EVERY, int(3_000 * scale)),
                refine_every=EVERY,
            )
            self.state = self.strategy.initialize_state(scene_scale=extent)
        else:
            self.strategy = MCMCStrategy(
                cap_max=most,
                refine_start_iter=min(500, int(steps / 10)),
                refine_stop_iter=int(25_000 * scale),
                refine_every=EVERY,
            )
            self.state = self.strategy.initialize_state()

    def before_backward(
        self, parameters: Parameters, optimizers: Optimizers, step: int, meta: dict[str, Any]
    ) -> None:
        """Ask for what is needed of the gradient."""
        self.strategy.step_pre_backward(parameters, optimizers, self.state, step, meta)

    def regularization(self, scene: Scene) -> Tensor:
        """What the strategy adds to the loss: mcmc wants few and small Gaussians to be needed."""
        if self.name == "default":
            return torch.zeros(())
        return PRESSURE * (scene.opacities.sigmoid().mean() + scene.scales.exp().mean())

    def after_step(
        self,
        parameters: Parameters,
        optimizers: Optimizers,
        step: int,
        meta: dict[str, Any],
        seed: int,
    ) -> None:
        """Change ``parameters`` and ``optimizers`` where it is time to; the seed decides how."""
        more = {} if self.name == "default" else {"lr": optimizers["means"].param_groups[0]["lr"]}
        with torch.random.fork_rng(devices=[]), _without_cuda():
            torch.manual_seed(hash((seed, step)))
            self.strategy.step_post_backward(parameters, optimizers, self.state, step, meta, **more)


def check_installed() -> None:
    """Raise a UserError where gsplat is not there."""
    try:
        import gsplat.strategy  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"training needs gsplat's strategies ({error}): pip install 'pyext-plugins[splat-fit]'"
        ) from error


@contextmanager
def _without_cuda() -> Iterator[None]:
    """gsplat's strategies with this module's functions in place of the CUDA extension's."""
    with patch.multiple(
        "gsplat.strategy.ops",
        compute_relocation=relocated,
        quat_scale_to_covar_preci=lambda quats, scales, **_: (covariances(quats, scales), None),
    ):
        yield


def relocated(
    opacities: Tensor, scales: Tensor, ratios: Tensor, binoms: Tensor
) -> tuple[Tensor, Tensor]:
    """Opacities and sizes of Gaussians that share one's place and together look like it.

    Kheradmand et al. 2024, equation 9.

    Args:
        opacities, scales: of the one, in (0, 1) and > 0, [N] and [N, 3].
        ratios: how many share the place, [N].
        binoms: binomial coefficients n over k, [n_max, n_max]; more than n_max count as n_max.

    Returns:
        Opacities [N] and scales [N, 3].
    """
    most = len(binoms)
    ratios = ratios.clamp(1, most)
    wanted = opacities.double()
    shared = 1 - (1 - wanted) ** (1 / ratios.double())
    k = torch.arange(most, dtype=torch.float64, device=opacities.device)
    # The sum over i below the ratio of (i over k) is a column sum of the table down to the ratio.
    coefficients = binoms.double().cumsum(0)[ratios - 1]
    terms = coefficients * (-1) ** k * shared[:, None] ** (k + 1) / (k + 1).sqrt()
    factor = wanted / terms.sum(1)
    return shared.to(opacities.dtype), (factor[:, None] * scales).to(scales.dtype)


def covariances(quats: Tensor, scales: Tensor) -> Tensor:
    """Of Gaussians with rotations [N, 4] (w, x, y, z) of any length and sizes [N, 3]; [N, 3, 3]."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    axes = torch.stack(rows, -1).unflatten(-1, (3, 3)) * scales[:, None]
    return axes @ axes.mT
