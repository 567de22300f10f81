"""Stable Diffusion: prompts, two stages of them, and latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from pyext.errors import UserError
from pyext_plugins.diffii.models import Guide, Model, Tick, no_tick, to_bytes

PROMPT = "a photo of a {}"


class StableDiffusion(Model):
    """A `StableDiffusionPipeline`, with learned tokens and LoRA loaded if it is to have any.

    Args:
        pipeline: its scheduler is replaced.
        prompt: of every class, with {} for its concept.
        concepts: what stands for a class in its prompt; the class's name, if it is not here.
        spacing: see `schedule.make_schedulers`.

    Raises:
        UserError: the prompt has no place for the concept.
    """

    channels = 3

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        prompt: str = PROMPT,
        concepts: Mapping[str, str] | None = None,
        spacing: str = "trailing",
    ) -> None:
        super().__init__(pipeline.scheduler.config, spacing)
        if "{}" not in prompt:
            raise UserError(f"--prompt: expected {{}} in it, for the concept, got {prompt!r}")
        self.pipeline, self.prompt, self.concepts = pipeline, prompt, dict(concepts or {})
        pipeline.scheduler = self.scheduler
        pipeline.set_progress_bar_config(disable=True)
        self.size = pipeline.unet.config["sample_size"] * pipeline.vae_scale_factor
        self._embedded: dict[str, Tensor] = {}

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.pipeline.unet.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.pipeline.unet.device

    def parts(self) -> dict[str, nn.Module]:
        names = ("unet", "vae", "text_encoder")
        return {name: getattr(self.pipeline, name) for name in names}

    def check(self, classes: Sequence[str], guidance: float, suffixes: bool) -> None:
        unknown = sorted(set(self.concepts) - set(classes))
        if unknown:
            raise UserError(
                f"--concepts: expected names of classes, got {unknown[0]!r}; there are: "
                f"{', '.join(classes)}"
            )
        if guidance < 1:
            raise UserError(f"--guidance: expected at least 1, got {guidance:g}")

    def condition(self, name: str) -> str:
        return self.prompt.replace("{}", self.concepts.get(name, name))

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        vae = self.pipeline.vae
        mean = vae.encode(pictures.to(self.device, self.dtype)).latent_dist.mean
        return mean * vae.config["scaling_factor"]

    def predict(self, x: Tensor, timestep: int, classes: Sequence[str]) -> Tensor:
        prompts = self._embed([self.condition(name) for name in classes])
        unet = self.pipeline.unet
        return unet(x, timestep, encoder_hidden_states=prompts, return_dict=False)[0]

    @torch.no_grad()
    def generate(self, x: Tensor, guide: Guide, tick: Tick = no_tick) -> Tensor:
        plain = [self.condition(name) for name in guide.classes]
        suffixed = [f"{p} {s}".strip() for p, s in zip(plain, guide.suffixes, strict=True)]
        stages = Stages(self, guide, self._embed(plain), tick)
        first = suffixed if stages.is_first(0) else plain
        scale = self.pipeline.vae_scale_factor
        pictures = self.pipeline(
            prompt_embeds=self._embed(first),
            negative_prompt_embeds=self._embed([""] * len(x)) if guide.guidance > 1 else None,
            latents=x.to(self.device, self.dtype),
            height=x.shape[-2] * scale,
            width=x.shape[-1] * scale,
            num_inference_steps=self.scheduler.num_inference_steps,
            guidance_scale=guide.guidance,
            callback_on_step_end=stages,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
            output_type="pt",
        ).images
        return to_bytes(pictures * 2 - 1)

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        """[B, tokens, width]. Each text is read alone, so that its company changes no bit of it."""
        for text in set(prompts) - set(self._embedded):
            found = self.pipeline.encode_prompt(text, self.device, 1, False)[0]
            self._embedded[text] = found
        return torch.cat([self._embedded[text] for text in prompts])


class Stages:
    """The callback of diffusers that puts the plain prompts in place of the suffixed ones.

    Args:
        plain: embedded prompts [B, tokens, width].
        tick: called after every step.
    """

    def __init__(self, model: StableDiffusion, guide: Guide, plain: Tensor, tick: Tick) -> None:
        self.scheduler, self.guide, self.plain, self.tick = model.scheduler, guide, plain, tick

    def is_first(self, step: int) -> bool:
        """Whether a step is taken in the first stage."""
        timestep = int(self.scheduler.timesteps[step])
        return self.guide.in_first_stage(timestep, self.scheduler.config["num_train_timesteps"])

    def __call__(
        self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        self.tick()
        following = step + 1
        if following == len(self.scheduler.timesteps) or self.is_first(following):
            return {}
        if not self.is_first(step):
            return {}
        # With guidance the embeddings of no prompt come first.
        others = tensors["prompt_embeds"][: -len(self.plain)]
        return {"prompt_embeds": torch.cat([others, self.plain])}
