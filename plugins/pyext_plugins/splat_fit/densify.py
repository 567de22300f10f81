"""How Gaussians become more and fewer: gsplat's own strategies, on the CPU.

Kerbl et al. 2023 (clone, split, prune) and Kheradmand et al. 2024, "3D Gaussian Splatting as
Markov Chain Monte Carlo".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.adapters.gsplat_strategies import without_extension
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
        with torch.random.fork_rng(devices=[]), without_extension():
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
