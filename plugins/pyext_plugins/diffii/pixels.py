"""Diffusion models of pixels: a `UNet2DModel`, with classes or without any condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from pyext.errors import UserError
from pyext_plugins.diffii.models import Guide, Model, Tick, no_tick, to_bytes
from pyext_plugins.diffii.schedule import denoise


class PixelModel(Model):
    """A `UNet2DModel`.

    Args:
        unet: of square pictures, grey or RGB.
        config: of its scheduler.
        labels: number of each class in the U-Net's class embedding; None for a U-Net without.
        null_label: the number that stands for no class, which guidance needs.
        spacing: see `schedule.make_schedulers`.

    Raises:
        UserError: a label is outside the U-Net's embedding, or the pictures are not square.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        config: Mapping[str, Any],
        labels: Mapping[str, int] | None = None,
        null_label: int | None = None,
        spacing: str = "trailing",
    ) -> None:
        super().__init__(config, spacing)
        self.unet = unet.eval().requires_grad_(False)
        self.channels, self.size = unet.config["in_channels"], _side(unet.config["sample_size"])
        self.labels, self.null_label = labels, null_label
        self.embeds = unet.config["num_class_embeds"]
        if self.embeds is not None:
            known = [
                *(labels or {}).items(),
                *([] if null_label is None else [("null", null_label)]),
            ]
            for name, label in known:
                if not 0 <= label < self.embeds:
                    raise UserError(
                        f"labels: expected 0 to {self.embeds - 1} for this U-Net, got {label} for "
                        f"class {name!r}"
                    )

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.unet.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.unet.device

    def parts(self) -> dict[str, nn.Module]:
        return {"unet": self.unet}

    def check(self, classes: Sequence[str], guidance: float, suffixes: bool) -> None:
        if suffixes:
            raise UserError("--suffixes: this model reads no text; they need Stable Diffusion")
        if guidance != 1 and (self.embeds is None or self.null_label is None):
            lacks = "no classes" if self.embeds is None else "no --null-label"
            raise UserError(f"--guidance: expected 1 for a model with {lacks}, got {guidance:g}")
        if self.embeds is not None:
            for name in classes:
                if name not in (self.labels or {}):
                    raise UserError(
                        f"class {name!r}: the model has no label for it; see --concepts"
                    )

    def condition(self, name: str) -> str:
        return "" if self.embeds is None else f"label {(self.labels or {})[name]}"

    def encode(self, pictures: Tensor) -> Tensor:
        return pictures.to(self.device, self.dtype)

    def predict(self, x: Tensor, timestep: int, classes: Sequence[str]) -> Tensor:
        return self._unet(x, timestep, self._tokens(classes))

    @torch.no_grad()
    def generate(self, x: Tensor, guide: Guide, tick: Tick = no_tick) -> Tensor:
        return to_bytes(self.denoise(x, guide, tick))

    @torch.no_grad()
    def denoise(
        self, x: Tensor, guide: Guide, tick: Tick = no_tick, start: int | None = None
    ) -> Tensor:
        """From x [B, *S] to pictures [B, C, H, W] that should lie in [-1, 1].

        Args:
            start: the timestep that x is at; None for the first.
        """
        x = x.to(self.device, self.dtype)
        tokens = self._tokens(guide.classes)
        guided = guide.guidance != 1 and tokens is not None
        if guided:
            tokens = torch.cat([torch.full_like(tokens, self.null_label), tokens])
        for timestep in self.scheduler.timesteps.tolist():
            if start is not None and timestep > start:
                continue
            predicted = self._unet(torch.cat([x, x]) if guided else x, timestep, tokens)
            x = denoise(predicted, x, self.scheduler, timestep, guide.guidance, cfg=guided)
            tick()
        return x

    def _tokens(self, classes: Sequence[str]) -> Any:
        if self.embeds is None:
            return None
        return torch.tensor([(self.labels or {})[name] for name in classes], device=self.device)

    def _unet(self, x: Tensor, timestep: int, tokens: Tensor | None) -> Tensor:
        return self.unet(x, timestep, class_labels=tokens, return_dict=False)[0]


def _side(size: int | Sequence[int]) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise UserError(f"--model: expected a U-Net of square pictures, got {tuple(size)}")  # type: ignore[arg-type]
    return sides.pop()
