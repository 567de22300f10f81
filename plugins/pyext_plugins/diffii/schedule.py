"""The noise levels that images are inverted and generated over: DDIM, in both directions."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from pyext.ops import circle

PREDICTIONS = ("epsilon", "v_prediction")
SPACINGS = ("trailing", "leading")


class AffineDDIM(DDIMScheduler):
    """DDIM without noise and clipping, each update in one pass over the latents.

    The same to rounding as its base class with ``eta=0`` and ``clip_sample=False``.
    """

    def step(
        self, model_output: Tensor, timestep: int, sample: Tensor, return_dict: bool = True
    ) -> Any:
        """From ``timestep`` to the one before it."""
        before = denoise(model_output, sample, self, int(timestep))
        return DDIMSchedulerOutput(prev_sample=before) if return_dict else (before,)


def make_schedulers(
    config: Mapping[str, Any], spacing: str = "trailing"
) -> tuple[AffineDDIM, DDIMInverseScheduler]:
    """The scheduler to generate with and the one to invert with, of one model.

    Args:
        config: of the model's own scheduler, of whichever kind.
        spacing: "trailing", where both directions have their noisiest step at the last timestep
            whatever their numbers of steps; or "leading", as the authors have it.

    Raises:
        ValueError: the model predicts what cannot be inverted, its last timestep is noise alone, or
            the spacing is unknown.

    Warns:
        UserWarning: the model's scheduler clips; steps that clip cannot be inverted, so neither
            direction does.
    """
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"scheduler: expected prediction_type 'epsilon' or 'v_prediction', got {prediction!r}"
        )
    if spacing not in SPACINGS:
        raise ValueError(f"spacing: expected 'trailing' or 'leading', got {spacing!r}")
    if config.get("rescale_betas_zero_snr"):
        raise ValueError(
            "scheduler: expected rescale_betas_zero_snr=False, got True: no image is left "
            "at its last timestep, so that inversions would all be the model's prediction alone"
        )
    for name in ("clip_sample", "thresholding"):
        if config.get(name):
            warnings.warn(
                f"scheduler: the model's has {name}=True, used is {name}=False: steps that clip "
                "cannot be inverted",
                stacklevel=2,
            )
    known = inspect.signature(DDIMScheduler.__init__).parameters
    own = {name: value for name, value in config.items() if name in known}
    own |= {"timestep_spacing": spacing, "clip_sample": False}
    forward = AffineDDIM(**own | {"thresholding": False})
    known = inspect.signature(DDIMInverseScheduler.__init__).parameters
    return forward, DDIMInverseScheduler(**{k: v for k, v in own.items() if k in known})


def set_steps(
    forward: DDIMScheduler, inverse: DDIMInverseScheduler, steps: int, inversion_steps: int
) -> None:
    """Set the number of steps of both directions.

    Raises:
        ValueError: there are more steps than the model has timesteps, or fewer than 1.

    Warns:
        UserWarning: generation does not start where inversion ended.
    """
    most = int(forward.config["num_train_timesteps"])
    for name, value in (("steps", steps), ("inversion_steps", inversion_steps)):
        if not 1 <= value <= most:
            raise ValueError(f"{name}: expected 1 to {most}, got {value}")
    forward.set_timesteps(steps)
    inverse.set_timesteps(inversion_steps)
    first, last = int(forward.timesteps[0]), int(inverse.timesteps[-1])
    if first != last:
        levels = [float((1 - forward.alphas_cumprod[t]).sqrt()) for t in (last, first)]
        warnings.warn(
            f"scheduler: {inversion_steps} steps of inversion end at timestep {last} (noise "
            f"{levels[0]:.4f}), {steps} steps of generation start at {first} (noise "
            f"{levels[1]:.4f}); spacing 'trailing' has them meet",
            stacklevel=2,
        )


def denoise(
    predicted: Tensor,
    x: Tensor,
    scheduler: DDIMScheduler,
    timestep: int,
    guidance: float = 1.0,
    cfg: bool = False,
) -> Tensor:
    """x [B, *S] at ``timestep`` taken to the timestep before.

    Args:
        predicted: [B, *S]; with ``cfg`` [2B, *S], first what was predicted without condition.
        guidance: weight of the conditional prediction.
    """
    here, before = _levels(scheduler, timestep, scheduler.final_alpha_cumprod)
    coefficients = _coefficients(scheduler, here, before, x)
    return circle.ddim_affine_step(predicted, x, coefficients, guidance=guidance, cfg=cfg)


def renoise(predicted: Tensor, x: Tensor, scheduler: DDIMInverseScheduler, timestep: int) -> Tensor:
    """x [B, *S] at the timestep before ``timestep`` taken to it; predicted [B, *S]."""
    here, before = _levels(scheduler, timestep, scheduler.initial_alpha_cumprod)
    coefficients = _coefficients(scheduler, before, here, x)
    return circle.ddim_affine_step(predicted, x, coefficients)


def _levels(scheduler: Any, timestep: int, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Cumulative alphas at a timestep and at the one before it, as diffusers takes it."""
    before = timestep - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    alphas = scheduler.alphas_cumprod
    return alphas[timestep], alphas[before] if before >= 0 else clean


def _coefficients(scheduler: Any, start: Tensor, end: Tensor, x: Tensor) -> Tensor:
    both = circle.ddim_coefficients(start, end, scheduler.config.prediction_type)
    return both.to(x.device)


def scheduler_text(scheduler: DDIMScheduler) -> dict[str, Any]:
    """The settings of a scheduler that its noise levels depend on."""
    names = inspect.signature(DDIMScheduler.__init__).parameters
    config = {name: scheduler.config[name] for name in names if name in scheduler.config}
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in config.items()}
