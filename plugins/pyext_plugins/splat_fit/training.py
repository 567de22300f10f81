"""The optimisation of a scene: ``run(Training(dataset, TrainingSettings()))``."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version

import torch
from torch import Tensor

from pyext.errors import UserError
from pyext.scene import Scene
from pyext_plugins.ranges import check_ranges
from pyext_plugins.splat_fit import densify
from pyext_plugins.splat_fit.cameras import render
from pyext_plugins.splat_fit.cloud import random_cloud, scene_extent, start
from pyext_plugins.splat_fit.dataset import Dataset, Photograph
from pyext_plugins.splat_fit.densify import Densification
from pyext_plugins.splat_fit.ssim import ssim

# Adam's step sizes, Kerbl et al.'s: the means' in units of the scene's extent.
STEP_SIZES = {
    "means": 1.6e-4,
    "scales": 5e-3,
    "quats": 1e-3,
    "opacities": 5e-2,
    "sh0": 2.5e-3,
    "shN": 2.5e-3 / 20,
}
LAST_STEP_SIZE = 0.01  # of the first, for the means; in between it falls exponentially
SSIM_SHARE = 0.2  # of the loss
DEGREE_EVERY = 1000  # steps: then colours get another degree of spherical harmonics
SMOOTH = 0.98  # share of the shown PSNR that the next step leaves


@dataclass(frozen=True)
class TrainingSettings:
    """What a training depends on besides the photographs.

    Args:
        steps: of the optimizer, one photograph each.
        gaussians: how many start where no points are known; with mcmc, also how many there can be.
        sh_degree: of the spherical harmonics of the colour, 0 to 4.
        strategy: default or mcmc.
        seed: of the starting places, the order of photographs and the strategy's chances.

    Raises:
        UserError: a value is outside its range.
    """

    steps: int = 7_000
    gaussians: int = 10_000
    sh_degree: int = 3
    strategy: str = "default"
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "steps": (1, 1_000_000),
            "gaussians": (1, 10_000_000),
            "sh_degree": (0, 4),
            "seed": (0, 2**63 - 1),
        }
        check_ranges(self, ranges)
        if self.strategy not in densify.NAMES:
            raise UserError(
                f"--strategy: expected {' or '.join(densify.NAMES)}, got {self.strategy!r}"
            )


class Training:
    """A scene being trained: parameters, optimizers and densification.

    Args:
        dataset: photographs and cameras.
        settings: how.
    """

    def __init__(self, dataset: Dataset, settings: TrainingSettings) -> None:
        self.dataset, self.settings = dataset, settings
        cameras = [photograph.camera for photograph in dataset.train]
        self.extent = scene_extent(cameras)
        points, colors = dataset.points, dataset.colors
        if not len(points):
            points, colors = random_cloud(cameras, settings.gaussians, settings.seed)
        first = start(points, colors, settings.sh_degree)
        self.parameters: dict[str, Tensor] = {
            field.name: torch.nn.Parameter(getattr(first, field.name)) for field in fields(first)
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam([value], lr=STEP_SIZES[name], eps=1e-15, fused=True)
            for name, value in self.parameters.items()
        }
        self.densification = Densification(
            settings.strategy, settings.steps, settings.gaussians, self.extent
        )
        self.step = 0
        self.seconds = 0.0
        self.psnr_seen = 0.0  # in dB, of the photographs of late

    @property
    def done(self) -> bool:
        return self.step >= self.settings.steps

    @property
    def scene(self) -> Scene:
        """The scene now."""
        return Scene(**{name: value.detach() for name, value in self.parameters.items()})

    def advance(self) -> float:
        """Take one step; return the PSNR in dB of the photographs of late."""
        began = time.perf_counter()
        photograph = self._photograph()
        target = photograph.colors()
        self.optimizers["means"].param_groups[0]["lr"] = (
            STEP_SIZES["means"] * self.extent * LAST_STEP_SIZE ** (self.step / self.settings.steps)
        )
        scene = Scene(**self.parameters)
        picture, meta = render(
            scene,
            photograph.camera,
            self.dataset.background,
            sh_degree=min(self.step // DEGREE_EVERY, self.settings.sh_degree),
        )
        loss = (1 - SSIM_SHARE) * (picture - target).abs().mean()
        loss = loss + SSIM_SHARE * (1 - ssim(picture, target))
        loss = loss + self.densification.regularization(scene)
        state = (self.parameters, self.optimizers, self.step, meta)
        self.densification.before_backward(*state)
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.densification.after_step(*state, seed=self.settings.seed)
        self._note(picture.detach(), target)
        self.step += 1
        self.seconds += time.perf_counter() - began
        return self.psnr_seen

    def _photograph(self) -> Photograph:
        """All of them in some order, then all in another; the step alone decides."""
        epoch, place = divmod(self.step, len(self.dataset.train))
        generator = torch.Generator().manual_seed(hash((self.settings.seed, epoch)))
        order = torch.randperm(len(self.dataset.train), generator=generator)
        return self.dataset.train[int(order[place])]

    def _note(self, picture: Tensor, target: Tensor) -> None:
        error = (picture.clamp(0, 1) - target).square().mean().clamp(min=1e-12)
        psnr = float(-10 * error.log10())
        keep = SMOOTH if self.step else 0.0
        self.psnr_seen = keep * self.psnr_seen + (1 - keep) * psnr

    def identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this training to go on with it."""
        return {
            "settings": json.dumps(asdict(self.settings)),
            "data": self.dataset.digest,
            "gsplat": version("gsplat"),
        }

    def state(self) -> dict[str, Tensor]:
        """All that the rest of the training depends on, besides step and seconds."""
        tensors = {"psnr": torch.tensor(self.psnr_seen, dtype=torch.float64)}
        for name, parameter in self.parameters.items():
            tensors[f"parameter.{name}"] = parameter
            for key, value in self.optimizers[name].state[parameter].items():
                tensors[f"adam.{name}.{key}"] = value
        for name, value in self.densification.state.items():
            if isinstance(value, Tensor):
                tensors[f"densification.{name}"] = value
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave; the number of Gaussians may have become another."""
        self.psnr_seen = float(tensors["psnr"])
        for name, optimizer in self.optimizers.items():
            parameter = torch.nn.Parameter(tensors[f"parameter.{name}"])
            self.parameters[name] = parameter
            optimizer.param_groups[0]["params"] = [parameter]
            prefix = f"adam.{name}."
            found = {key for key in tensors if key.startswith(prefix)}
            optimizer.state.clear()
            if found:
                optimizer.state[parameter] = {
                    key.removeprefix(prefix): tensors[key] for key in sorted(found)
                }
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            if kind == "densification":
                self.densification.state[name] = value
