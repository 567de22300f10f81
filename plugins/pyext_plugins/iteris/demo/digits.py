"""The demo's first study: one network of digits, four tasks with a LoRA each, ways to merge them.

scikit-learn's digits, 1797 pictures of 8 x 8: 1300 to train on, 497 to test on, by a permutation of
the seed. The base learns them as they are; the tasks are to read them turned, mirrored, inverted,
and with their blocks of 2 x 2 in another order, all with the same labels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.applied import applied
from pyext_plugins.iteris.demo.training import cached, fit, save_lora, updates_of, with_lora
from pyext_plugins.iteris.tasks import Batch, Task

WIDTH, BLOCKS, CLASSES = 128, 6, 10
TRAINED_ON = 1300
TARGETS = r"stem|blocks\.\d+\.(first|second)"  # all linear modules but the head
NAMES = ("turned", "mirrored", "inverted", "blocks")


@dataclass(frozen=True)
class Training:
    """How base and LoRAs are trained."""

    base_steps: int = 500
    base_step_size: float = 2e-3
    steps: int = 500
    step_size: float = 3e-3
    batch: int = 128
    rank: int = 8
    alpha: int = 16


class Block(nn.Module):
    """x + second(relu(first(norm(x))))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.second(F.relu(self.first(self.norm(x))))
        return found


class Network(nn.Module):
    """Thirteen linear maps in a row, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 10] of pictures [B, 64]."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


@dataclass(frozen=True)
class Pictures:
    """Pictures [n, 64] in [-1, 1], and labels [n]."""

    images: Tensor
    labels: Tensor


def load_digits(seed: int) -> tuple[Pictures, Pictures]:
    """To train on, and to test on."""
    from sklearn import datasets

    found = datasets.load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(found.data, dtype=torch.float32)[order] / 8 - 1
    labels = torch.tensor(found.target)[order]
    parts = slice(TRAINED_ON), slice(TRAINED_ON, None)
    first, second = (Pictures(images[part], labels[part]) for part in parts)
    return first, second


def task_inputs(name: str, images: Tensor, seed: int) -> Tensor:
    """Pictures [n, 64] as one of the tasks shows them."""
    square = images.view(-1, 8, 8)
    if name == "turned":
        square = square.rot90(1, (1, 2))
    elif name == "mirrored":
        square = square.flip(2)
    elif name == "inverted":
        square = -square
    else:
        order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
        blocks = square.view(-1, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(-1, 16, 2, 2)
        square = blocks[:, order].view(-1, 4, 4, 2, 2).permute(0, 1, 3, 2, 4)
    return square.reshape(len(images), 64).contiguous()


class Study:
    """One seed: the base, the LoRAs, and what a merged model is worth.

    Args:
        folder: where base and LoRAs are kept.
        seed: of everything random.
        training: how they are trained.
    """

    def __init__(self, folder: Path, seed: int, training: Training) -> None:
        self.seed, self.training = seed, training
        self.train, self.test = load_digits(seed)
        settings = asdict(training) | {"seed": seed}
        base = cached(folder / f"base-{seed}", settings, self._make_base)
        self.base = Network()
        load_model(self.base, base / "model.safetensors")
        self.base.requires_grad_(False).eval()
        self.updates: dict[str, dict[str, LowRank]] = {}
        for name in NAMES:
            make = self._maker(name)
            self.updates[name] = updates_of(cached(folder / f"{name}-{seed}", settings, make))

    def tasks(self, samples: int) -> list[Task]:
        """For merging: each with as many unlabelled pictures that it was trained on."""
        found = []
        for number, name in enumerate(NAMES):
            generator = torch.Generator().manual_seed(100 * self.seed + number)
            rows = torch.randperm(len(self.train.labels), generator=generator)[:samples]
            x = task_inputs(name, self.train.images[rows], self.seed)
            found.append(Task(name, self.updates[name], [Batch({"x": x})]))
        return found

    @torch.no_grad()
    def accuracy(self, name: str, modules: Mapping[str, LowRank]) -> float:
        """Of the base under updates, on one task's test pictures, in percent."""
        images = task_inputs(name, self.test.images, self.seed)
        with applied(self.base, modules):
            found = self.base(images).argmax(-1)
        return 100 * float((found == self.test.labels).float().mean())

    def accuracies(self, modules: Mapping[str, LowRank]) -> list[float]:
        """On all tasks."""
        return [self.accuracy(name, modules) for name in NAMES]

    def alone(self) -> list[float]:
        """Of each LoRA on its own task."""
        return [self.accuracy(name, self.updates[name]) for name in NAMES]

    def _make_base(self, folder: Path) -> None:
        torch.manual_seed(self.seed)
        network, own = Network(), self.training
        self._fit(network, network, self.train.images, own.base_steps, own.base_step_size)
        save_model(network, str(folder / "model.safetensors"))

    def _maker(self, name: str) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            torch.manual_seed(self.seed)
            own = self.training
            model = with_lora(copy.deepcopy(self.base), own.rank, own.alpha, TARGETS)
            images = task_inputs(name, self.train.images, self.seed)
            self._fit(model, model, images, own.steps, own.step_size)
            save_lora(model, folder)

        return make

    def _fit(
        self,
        model: nn.Module,
        run: Callable[[Tensor], Tensor],
        images: Tensor,
        steps: int,
        step_size: float,
    ) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        labels = self.train.labels
        fit(
            trained,
            lambda rows: F.cross_entropy(run(images[rows]), labels[rows]),
            len(labels),
            steps,
            self.training.batch,
            step_size,
            self.seed,
        )
