"""Models of random weights on disk, and folders of random pictures."""

import numpy as np
import torch
from PIL import Image

CLASSES = ("cat", "dog", "emu")


def pixel_folder(folder, classes=None, channels=1, **scheduler):
    """A DDPM of 8 x 8 pixels, as diffusers saves it."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        num_class_embeds=classes,
    )
    DDPMPipeline(unet, DDPMScheduler(**{"clip_sample": False, **scheduler})).save_pretrained(folder)
    return folder


def stable_diffusion_folder(folder):
    from pyext_plugins.diffii.tiny import tiny_stable_diffusion

    folder.mkdir()
    tiny_stable_diffusion(folder).save_pretrained(folder / "sd")
    return folder / "sd"


def picture_folder(folder, counts=(3, 2, 3), size=(12, 10)):
    """A folder for each class, with this many pictures in each."""
    generator = np.random.default_rng(0)
    for name, count in zip(CLASSES, counts, strict=False):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder
