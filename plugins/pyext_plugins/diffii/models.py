"""What the method asks of a diffusion model, and what is the same for all of them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMInverseScheduler
from torch import Tensor, nn

from pyext_plugins.diffii.schedule import make_schedulers, renoise, set_steps
from pyext_plugins.digest import digest

Tick = Callable[[], None]


def no_tick() -> None:
    """What to do after a step of the U-Net where nobody is watching."""


@dataclass(frozen=True)
class Guide:
    """How a batch is denoised.

    Args:
        classes: of each image.
        suffixes: what follows the prompt of each image in the first stage; "" for nothing.
        suffix_fraction: share of the model's timesteps, from the noisiest on, that is the first
            stage.
        guidance: weight w of classifier-free guidance, u + w (c - u) of the predictions without
            and with condition. 1 is no guidance, and takes half the work.
    """

    classes: Sequence[str]
    suffixes: Sequence[str]
    suffix_fraction: float
    guidance: float

    def in_first_stage(self, timestep: int, timesteps: int) -> bool:
        return timestep >= timesteps * (1 - self.suffix_fraction)


class Model(ABC):
    """A diffusion model with DDIM in both directions.

    Args:
        config: of its own scheduler.
        spacing: see `schedule.make_schedulers`.
    """

    channels: int
    size: int  # pixels
    dtype: torch.dtype
    device: torch.device

    def __init__(self, config: Mapping[str, Any], spacing: str) -> None:
        self.scheduler, self.inverse = make_schedulers(config, spacing)

    def set_steps(self, steps: int, inversion_steps: int) -> None:
        """Numbers of steps of generation and inversion; see `schedule.set_steps`."""
        set_steps(self.scheduler, self.inverse, steps, inversion_steps)

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """The networks that results depend on."""

    @abstractmethod
    def check(self, classes: Sequence[str], guidance: float, suffixes: bool) -> None:
        """Whether this can be done.

        Raises:
            UserError: a class is unknown to the model, or it has no guidance or suffixes.
        """

    @abstractmethod
    def condition(self, name: str) -> str:
        """What the model is told of a class, for people to read."""

    @abstractmethod
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [B, C, H, W] in [-1, 1] to what is diffused [B, *S]."""

    @abstractmethod
    def predict(self, x: Tensor, timestep: int, classes: Sequence[str]) -> Tensor:
        """What the U-Net predicts for x [B, *S], each of its class, without guidance."""

    @abstractmethod
    def generate(self, x: Tensor, guide: Guide, tick: Tick = no_tick) -> Tensor:
        """From noise [B, *S] to pictures, uint8, [B, H, W, 3]; ``tick`` after every step."""

    @torch.no_grad()
    def invert(self, x: Tensor, classes: Sequence[str], tick: Tick = no_tick) -> Tensor:
        """The noise [B, *S] that DDIM without guidance takes to x [B, *S].

        As the authors do, and diffusers' inverse scheduler, the U-Net is asked at the timestep that
        a step leads to.
        """
        return invert(lambda x, t: self.predict(x, t, classes), x, self.inverse, tick)

    def digest(self) -> str:
        """SHA-256 of all weights, adapters and learned tokens included."""
        found = hashlib.sha256()
        for name, module in self.parts().items():
            found.update(f"{name} {digest(module)}".encode())
        return found.hexdigest()


def invert(
    predict: Callable[[Tensor, int], Tensor],
    x: Tensor,
    inverse: DDIMInverseScheduler,
    tick: Tick = no_tick,
) -> Tensor:
    """The noise [B, *S] that DDIM takes to x [B, *S], for any prediction of a U-Net."""
    for timestep in inverse.timesteps.tolist():
        x = renoise(predict(x, timestep), x, inverse, timestep)
        tick()
    return x


def to_bytes(pictures: Tensor) -> Tensor:
    """Pictures [B, C, H, W] in [-1, 1], grey or RGB, to uint8 [B, H, W, 3]."""
    found = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return found.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).cpu().contiguous()
