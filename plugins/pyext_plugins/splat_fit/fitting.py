"""The optimisation: ``run(Fit(load_picture(path), Settings()))``."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from pyext_plugins.picture import psnr, to_bytes
from pyext_plugins.ranges import check_ranges
from pyext_plugins.session import run as run
from pyext_plugins.splat_fit.scene import Camera, Parameters, render, start

# Adam's step sizes: pixels for the means, the parameters' own units otherwise.
STEP_SIZES = {
    "means": 1.4,
    "log_scales": 0.04,
    "quats": 0.04,
    "logit_opacities": 0.1,
    "dc": 0.04,
}
LAST_STEP_SIZE = 0.05  # of the first; in between it falls exponentially
SNAPSHOTS = (0, 1 / 64, 1 / 16, 1 / 4, 1)  # of the steps


@dataclass(frozen=True)
class Settings:
    """What a fit depends on besides the picture.

    Args:
        gaussians: how many.
        steps: of the optimizer.
        seed: of the starting places.

    Raises:
        UserError: a number is outside its range.
    """

    gaussians: int = 20_000
    steps: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {"gaussians": (1, 1_000_000), "steps": (1, 100_000), "seed": (0, 2**63 - 1)}
        check_ranges(self, ranges)

    @property
    def snapshot_steps(self) -> list[int]:
        """The steps before which the picture is kept."""
        return sorted({int(share * self.steps) for share in SNAPSHOTS})


class Fit:
    """A picture being fitted: parameters, optimizer, and what was seen on the way.

    Args:
        target: the picture, colours in [0, 1], float32, [H, W, 3].
        settings: how many Gaussians and steps.
    """

    def __init__(self, target: Tensor, settings: Settings) -> None:
        self.target = target
        self.settings = settings
        self.camera = Camera(width=target.shape[1], height=target.shape[0])
        self.parameters: Parameters = {
            name: value.requires_grad_()
            for name, value in start(target, settings.gaussians, settings.seed).items()
        }
        self.optimizer = torch.optim.Adam(
            [{"params": [value], "name": name} for name, value in self.parameters.items()],
            eps=1e-15,
            fused=True,
        )
        self.step = 0
        self.seconds = 0.0
        self.snapshots: dict[int, Tensor] = {}  # uint8 [H, W, 3] by step

    @property
    def done(self) -> bool:
        return self.step >= self.settings.steps

    def advance(self) -> float:
        """Take one step; return the PSNR in dB of the picture before it."""
        began = time.perf_counter()
        self._set_step_sizes()
        picture = render(self.parameters, self.camera)
        loss = torch.nn.functional.mse_loss(picture, self.target)
        self.optimizer.zero_grad()
        loss.backward()
        if self.step in self.settings.snapshot_steps:
            self.snapshots[self.step] = to_bytes(picture.detach())
        self.optimizer.step()
        self.step += 1
        self.seconds += time.perf_counter() - began
        return float(-10 * loss.detach().clamp(min=1e-12).log10())

    def picture(self) -> Tensor:
        """The fitted picture now, [H, W, 3]."""
        with torch.no_grad():
            return render(self.parameters, self.camera)

    def psnr(self) -> float:
        """Of the fitted picture now, in dB, as eight-bit files hold it."""
        return psnr(self.picture(), self.target)

    def _set_step_sizes(self) -> None:
        decay = LAST_STEP_SIZE ** (self.step / self.settings.steps)
        for group in self.optimizer.param_groups:
            unit = self.camera.world_per_pixel if group["name"] == "means" else 1.0
            group["lr"] = STEP_SIZES[group["name"]] * unit * decay

    def identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this fit to go on with it."""
        digest = hashlib.sha256(repr(tuple(self.target.shape)).encode())
        digest.update(self.target.numpy().tobytes())
        return {"settings": json.dumps(asdict(self.settings)), "picture": digest.hexdigest()}

    def state(self) -> dict[str, Tensor]:
        """All that the rest of the fit depends on, besides step and seconds."""
        tensors = {f"snapshot.{step}": picture for step, picture in self.snapshots.items()}
        for name, parameter in self.parameters.items():
            tensors[f"parameter.{name}"] = parameter.detach()
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{name}.{key}"] = value
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for key, value in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "snapshot":
                self.snapshots[int(rest)] = value
            elif kind == "parameter":
                with torch.no_grad():
                    self.parameters[rest].copy_(value)
            else:
                name, _, field = rest.partition(".")
                self.optimizer.state[self.parameters[name]][field] = value
