"""The diffusion model of the demo: trained on the pool, then taught the classes.

Its class embedding has a token for each class, one that says nothing, and one for each caption. On
the pool it learns all but the classes' tokens; a labelled set then teaches it those.
"""

from __future__ import annotations

import copy
import math
import time
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pyext.files import whole_file
from pyext_plugins.adam import restore_training, training_state
from pyext_plugins.diffii.digits import CAPTIONS, CLASSES, SIDE, Digits, Draw
from pyext_plugins.digest import digest

NULL = CLASSES  # the token that says nothing
FIRST_CAPTION = CLASSES + 1
UNCAPTIONED, CAPTIONED = 1100, 1400  # steps
BATCH = 64
STEP_SIZE = 2e-3
DROPPED = 0.15  # share of captions replaced by the null token
CONCEPT_STEPS, CONCEPT_STEP_SIZE = 120, 5e-4
SMOOTH = 0.98  # share of the shown loss that the next step leaves


def make_unet() -> UNet2DModel:
    """0.4 million parameters, started at random."""
    return UNet2DModel(
        sample_size=SIDE,
        in_channels=1,
        out_channels=1,
        block_out_channels=(24, 48),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
        num_class_embeds=FIRST_CAPTION + CAPTIONS,
    )


def make_scheduler() -> DDIMScheduler:
    """Steps are not clipped: clipped ones cannot be inverted."""
    return DDIMScheduler(clip_sample=False, timestep_spacing="trailing")


def noise_loss(
    unet: nn.Module, images: Tensor, tokens: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean square error of the predicted noise, at random times."""
    scheduler = make_scheduler()
    noise = torch.randn(images.shape, generator=generator)
    steps = scheduler.config.num_train_timesteps
    times = torch.randint(steps, (len(images),), generator=generator)
    noisy = scheduler.add_noise(images, noise, cast(torch.IntTensor, times))
    return F.mse_loss(unet(noisy, times, class_labels=tokens).sample, noise)


class Training:
    """Of the U-Net on the pool: first without captions, then with. Step sizes fall as a cosine."""

    def __init__(self, digits: Digits, uncaptioned: int, captioned: int) -> None:
        torch.manual_seed(0)
        self.unet = make_unet()
        self.images, self.captions = digits.pool, digits.captions(digits.pool) + FIRST_CAPTION
        self.uncaptioned, self.steps = uncaptioned, uncaptioned + captioned
        self.parameters = dict(self.unet.named_parameters())
        self.optimizer = torch.optim.AdamW(self.parameters.values(), fused=True)
        self.step, self.seconds, self.loss_seen = 0, 0.0, 0.0

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def advance(self) -> float:
        """Take one step; return the loss of late."""
        began = time.perf_counter()
        # The step alone decides, so that a training that was put down goes on the same.
        generator = torch.Generator().manual_seed(self.step)
        rows = torch.randint(len(self.images), (BATCH,), generator=generator)
        tokens = self.captions[rows].clone()
        dropped = 1.0 if self.step < self.uncaptioned else DROPPED
        tokens[torch.rand(BATCH, generator=generator) < dropped] = NULL
        progress = self.step / self.steps
        rising = min(1.0, (self.step + 1) / 100)
        step_size = STEP_SIZE * rising * (1 + math.cos(math.pi * progress)) / 2
        self.optimizer.param_groups[0]["lr"] = step_size
        loss = noise_loss(self.unet, self.images[rows], tokens, generator)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        keep = SMOOTH if self.step else 0.0
        self.loss_seen = keep * self.loss_seen + (1 - keep) * float(loss.detach())
        self.step += 1
        self.seconds += time.perf_counter() - began
        return self.loss_seen

    def identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this training to go on with it."""
        settings = f'{{"uncaptioned": {self.uncaptioned}, "steps": {self.steps}}}'
        return {"settings": settings, **{name: version(name) for name in ("torch", "diffusers")}}

    def state(self) -> dict[str, Tensor]:
        """All that the rest of the training depends on, besides step and seconds."""
        tensors = training_state(self.parameters, self.optimizer)
        return {"loss": torch.tensor(self.loss_seen, dtype=torch.float64), **tensors}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.loss_seen = float(tensors["loss"])
        restore_training(self.parameters, self.optimizer, tensors)


def learn_concepts(unet: UNet2DModel, digits: Digits, draw: Draw, steps: int) -> UNet2DModel:
    """A copy of the generator that knows the classes of a labelled set.

    The token of a class starts as the mean of those of its pictures' captions; then all weights are
    trained, half on the labelled set and half on the pool, so that nothing is forgotten.
    """
    unet = copy.deepcopy(unet)
    captions = digits.captions(draw.train.images) + FIRST_CAPTION
    table = cast(nn.Embedding, unet.class_embedding).weight
    with torch.no_grad():
        for k in range(CLASSES):
            table[k] = table[captions[draw.train.labels == k]].mean(0)
    pool, pool_captions = digits.pool, digits.captions(digits.pool) + FIRST_CAPTION
    optimizer = torch.optim.AdamW(unet.parameters(), lr=CONCEPT_STEP_SIZE, fused=True)
    generator = torch.Generator().manual_seed(draw.number)
    half = BATCH // 2
    for _ in range(steps):
        own = torch.randint(len(draw.train), (half,), generator=generator)
        old = torch.randint(len(pool), (half,), generator=generator)
        images = torch.cat([draw.train.images[own], pool[old]])
        tokens = torch.cat([draw.train.labels[own], pool_captions[old]])
        tokens[torch.rand(len(tokens), generator=generator) < DROPPED] = NULL
        loss = noise_loss(unet, images, tokens, generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return unet.eval()


def taught(unet: UNet2DModel, digits: Digits, draw: Draw, steps: int, folder: Path) -> UNet2DModel:
    """As `learn_concepts`; kept in a folder, from which it is taken the next time."""
    path = folder / f"concepts-{draw.shots}-{draw.number}.safetensors"
    identity = {"generator": digest(unet), "steps": str(steps)}
    if path.exists():
        try:
            with safe_open(path, framework="pt") as file:
                if file.metadata() == identity:
                    found = make_unet()
                    found.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
                    return found.eval()
        except SafetensorError:
            pass  # cut off while something else wrote it: made anew
    found = learn_concepts(unet, digits, draw, steps)
    with whole_file(path) as temporary:
        save_file(found.state_dict(), temporary, metadata=identity)
    return found
