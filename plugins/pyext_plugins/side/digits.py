"""The small study of the demos: a ViT that knows upright digits, fine-tuned to tell rotations.

scikit-learn's digits, 1797 pictures of 8 x 8: some to pre-train on, 200 labelled ones of the rest
to fine-tune on, the others to test on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_model
from torch import Tensor, nn

from pyext.files import whole_file
from pyext_plugins.memory import saved_by
from pyext_plugins.side.arms import Frozen
from pyext_plugins.side.config import LadderConfig, SherlConfig, UniptConfig
from pyext_plugins.side.model import SideModel

WIDTH, BLOCKS, HEADS = 64, 6, 4
PRETRAINED_ON, LABELLED, TESTED = 900, 200, 497
PRETRAIN: dict[str, Any] = {"steps": 300, "batch": 48, "step_size": 1e-3}
STEPS, BATCH, STEP_SIZE = 200, 32, 3e-3
MEASURED_BATCH = 64
ROTATIONS = 4
ADAPTER_WIDTH = 16
LAST_ONLY = "unipt, last layer only"
ARMS = ("probe", LAST_ONLY, "unipt", "sherl", "lst", "adapter", "full")
CONFIGS = {
    "unipt": UniptConfig(reduction=2),
    LAST_ONLY: UniptConfig(reduction=2),
    "sherl": SherlConfig(reduction=2),
    "lst": LadderConfig(reduction=4),
}


class Adapted(nn.Module):
    """The baseline with an adapter after each block of a frozen backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.down = nn.ModuleList(nn.Linear(WIDTH, ADAPTER_WIDTH) for _ in range(BLOCKS))
        self.up = nn.ModuleList(nn.Linear(ADAPTER_WIDTH, WIDTH) for _ in range(BLOCKS))
        for k, layer in enumerate(cast(Sequence[nn.Module], backbone.layers)):
            layer.register_forward_hook(lambda m, a, out, k=k: self._adapt(k, out))

    def _adapt(self, k: int, hidden: Tensor) -> Tensor:
        return cast(Tensor, hidden + self.up[k](F.relu(self.down[k](hidden))))

    def forward(self, **inputs: Any) -> Any:
        return self.backbone(**inputs)


class Reader(nn.Module):
    """An encoder of pictures under a linear head, which reads the mean over the tokens."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, pictures: Tensor, taps: Sequence[Tensor] | None = None) -> Tensor:
        more = {} if taps is None else {"taps": taps}
        output = self.encoder(pixel_values=pictures, **more)
        return cast(Tensor, self.head(output.last_hidden_state.mean(1)))


@dataclass(frozen=True)
class Pictures:
    """Pictures [n, 1, 8, 8] in [-1, 1] and labels [n]."""

    images: Tensor
    labels: Tensor

    def rotated(self, seed: int) -> Pictures:
        """Each turned by a random multiple of 90 degrees, which becomes its label."""
        generator = torch.Generator().manual_seed(seed)
        turns = torch.randint(ROTATIONS, (len(self.labels),), generator=generator)
        images = [
            image.rot90(int(k), (-2, -1)) for image, k in zip(self.images, turns, strict=True)
        ]
        return Pictures(torch.stack(images), turns)


@dataclass(frozen=True)
class Digits:
    """Which pictures serve what."""

    pretrain: Pictures
    pool: Pictures
    test: Pictures

    def labelled(self, seed: int) -> Pictures:
        """200 pictures of those neither pre-trained nor tested on."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(self.pool.labels), generator=generator)[:LABELLED]
        return Pictures(self.pool.images[rows], self.pool.labels[rows])


def load_digits() -> Digits:
    """scikit-learn's digits, in one order for all seeds."""
    from sklearn import datasets

    found = datasets.load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images, dtype=torch.float32)[order].unsqueeze(1) / 8 - 1
    labels = torch.tensor(found.target)[order]
    ends = (0, PRETRAINED_ON, len(labels) - TESTED, len(labels))
    parts = [Pictures(images[a:b], labels[a:b]) for a, b in zip(ends, ends[1:], strict=False)]
    return Digits(*parts)


def make_backbone() -> nn.Module:
    """The ViT, 17 tokens, started at random."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=8,
        patch_size=2,
        num_channels=1,
    )
    return ViTModel(config, add_pooling_layer=False)


def backbone(digits: Digits, path: Path) -> nn.Module:
    """The ViT, pre-trained on upright digits; kept at ``path``."""
    settings = {name: str(value) for name, value in PRETRAIN.items()}
    torch.manual_seed(0)
    model = make_backbone()
    if path.exists():
        try:
            with safe_open(path, framework="pt") as file:
                if file.metadata() == settings:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                    model.load_state_dict(tensors)
                    return model
        except SafetensorError:
            pass  # cut off while it was written by something else: made anew
    reader = Reader(model, 10)
    fit(reader, digits.pretrain, seed=0, taps=None, **PRETRAIN)
    with whole_file(path) as temporary:
        save_model(model, str(temporary), metadata=settings)
    return model


def build(arm: str, model: nn.Module, classes: int, seed: int) -> Reader:
    """One arm. The backbone becomes part of it, and is changed."""
    torch.manual_seed(seed)
    if arm in CONFIGS:
        return Reader(SideModel(model, CONFIGS[arm]), classes)
    if arm == "full":
        return Reader(model, classes)
    return Reader(Frozen(model) if arm == "probe" else Adapted(model), classes)


def taps_of(arm: str, reader: Reader, images: Tensor) -> list[Tensor] | None:
    """Hidden states an arm can be trained from; None for one that needs its whole backbone."""
    if arm not in CONFIGS:
        return None
    taps = cast(SideModel, reader.encoder).hidden_states(pixel_values=images)
    # The same network of the same size, that is fed the last hidden state throughout.
    return [taps[-1]] * len(taps) if arm == LAST_ONLY else taps


def fit(
    reader: Reader,
    pictures: Pictures,
    seed: int,
    taps: Sequence[Tensor] | None,
    steps: int = STEPS,
    batch: int = BATCH,
    step_size: float = STEP_SIZE,
) -> None:
    """AdamW with one cycle of step sizes, on random batches."""
    trained = [parameter for parameter in reader.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=step_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, step_size, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    reader.train()
    for _ in range(steps):
        rows = torch.randperm(len(pictures.labels), generator=generator)[:batch]
        own = None if taps is None else [tap[rows] for tap in taps]
        loss = F.cross_entropy(reader(pictures.images[rows], own), pictures.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(reader: Reader, pictures: Pictures, taps: Sequence[Tensor] | None) -> float:
    """In percent."""
    reader.eval()
    found = reader(pictures.images, taps).argmax(-1)
    return 100 * float((found == pictures.labels).float().mean())


def saved(arm: str, reader: Reader, pictures: Pictures) -> int:
    """Bytes kept for backward in a step of 64 pictures, hidden states that are read counted."""
    images, labels = pictures.images[:MEASURED_BATCH], pictures.labels[:MEASURED_BATCH]
    reader.train()
    taps = taps_of(arm, reader, images)
    return saved_by(reader, lambda: F.cross_entropy(reader(images, taps), labels))
