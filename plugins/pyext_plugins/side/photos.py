"""The demo's third study: photos of fruit, UniPT beside the stages of an EfficientNet-Lite0.

Accuracies are reported and nothing is claimed of them.
"""

from __future__ import annotations

import copy
import hashlib
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pyext.report import Claim, Value
from pyext_plugins.data import cache
from pyext_plugins.memory import saved_by
from pyext_plugins.side.cnn import StageModel
from pyext_plugins.side.config import UniptConfig
from pyext_plugins.side.efficientnet import GROUPS, HEAD, SIDE, STAGES, load

MODEL, DATA = "efficientnet-lite0", "groceries"
SHOTS, TESTED = 10, 20  # photos of each kind
SEEDS = 3
STEPS, BATCH, STEP_SIZE = 60, 32, 3e-3
CHUNK = 20  # photos that the network looks at at once
ARMS = ("probe", "unipt", "full")
TITLE = f"EfficientNet-Lite0 on photos of fruit, {SHOTS} of each kind, {SEEDS} seeds"


@dataclass(frozen=True)
class Photos:
    """Photos [n, 3, 224, 224] as the network takes them, and the numbers of their kinds [n]."""

    images: Tensor
    kinds: Tensor


class Probe(nn.Module):
    """A linear head on the network's features [B, 1280]."""

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.head = nn.Linear(HEAD, kinds)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.head(features[0])
        return logits


class Beside(nn.Module):
    """A linear head on the mean of the map that UniPT makes of the stages' maps."""

    def __init__(self, network: nn.Module, kinds: int) -> None:
        super().__init__()
        self.encoder = StageModel(network, STAGES, UniptConfig(), (SIDE, SIDE))
        self.head = nn.Linear(GROUPS[-1].channels, kinds)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.head(self.encoder(maps=maps).pooler_output.flatten(1))
        return logits


def compare() -> tuple[list[dict[str, Value]], list[Claim]]:
    """Rows of all arms and the claim on them; without rows, and open, where data is not here."""
    if not (cache.is_here(MODEL) and cache.is_here(DATA)):
        print(f"not shown: photos; for them: pyext data fetch {MODEL} {DATA}", file=sys.stderr)
        return [], [_claim(None)]
    network = load(cache.path(MODEL))
    train, test = read(cache.path(DATA), "train", SHOTS), read(cache.path(DATA), "test", TESTED)
    kinds = int(train.kinds.max()) + 1
    seen, test_seen = _look(network, train.images), _look(network, test.images)
    accuracies: dict[str, list[float]] = {"probe": [], "unipt": []}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        for arm, reader in (("probe", Probe(kinds)), ("unipt", Beside(network, kinds))):
            fit(reader, seen[arm], train.kinds)
            accuracies[arm].append(accuracy(reader, test_seen[arm], test.kinds))
    saved = _saved(network, seen, train, kinds)
    return [_row(arm, accuracies.get(arm), saved[arm]) for arm in ARMS], [
        _claim(saved["unipt"] / saved["full"])
    ]


def read(path: Path, split: str, count: int) -> Photos:
    """The first ``count`` photos of each kind in a split of the table, none of them twice."""
    import pyarrow.parquet as parquet

    columns = ["dataset", "finegrained_cat", "image_data"]
    rows = parquet.read_table(path, columns=columns).to_pylist()
    names = sorted({row["finegrained_cat"] for row in rows})
    found: dict[str, dict[str, bytes]] = {name: {} for name in names}
    for row in rows:
        own, content = found[row["finegrained_cat"]], row["image_data"]
        if row["dataset"] == split and len(own) < count:
            own[hashlib.sha256(content).hexdigest()] = content
    contents = [(content, k) for k, name in enumerate(names) for content in found[name].values()]
    images = torch.stack([_decode(content) for content, _ in contents])
    return Photos(images, torch.tensor([k for _, k in contents]))


def _decode(content: bytes) -> Tensor:
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((SIDE, SIDE))
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() - 127) / 128


@torch.no_grad()
def _look(network: nn.Module, images: Tensor) -> dict[str, list[Tensor]]:
    """What the frozen network gives: its features for the probe, its stages' maps for UniPT."""
    model = StageModel(copy.deepcopy(network), STAGES, UniptConfig(), (SIDE, SIDE))
    features, maps = [], []
    for chunk in images.split(CHUNK):
        features.append(model.backbone(chunk))
        maps.append(model.maps(chunk))
    return {
        "probe": [torch.cat(features)],
        "unipt": [torch.cat(stage) for stage in zip(*maps, strict=True)],
    }


def fit(reader: nn.Module, seen: Sequence[Tensor], kinds: Tensor) -> None:
    """AdamW with one cycle of step sizes, on random batches of what was seen."""
    trained = [parameter for parameter in reader.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=STEP_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, STEP_SIZE, total_steps=STEPS)
    reader.train()
    for _ in range(STEPS):
        rows = torch.randperm(len(kinds))[:BATCH]
        loss = F.cross_entropy(reader([tensor[rows] for tensor in seen]), kinds[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(reader: nn.Module, seen: Sequence[Tensor], kinds: Tensor) -> float:
    """In percent."""
    reader.eval()
    chunks = zip(*(tensor.split(CHUNK) for tensor in seen), strict=True)
    found = torch.cat([reader(chunk).argmax(-1) for chunk in chunks])
    return 100 * float((found == kinds).float().mean())


def _saved(
    network: nn.Module, seen: dict[str, list[Tensor]], train: Photos, kinds: int
) -> dict[str, int]:
    """Bytes kept for backward by a step of each arm."""
    whole = nn.Sequential(copy.deepcopy(network).requires_grad_(True), nn.Linear(HEAD, kinds))
    probe, beside = Probe(kinds).train(), Beside(network, kinds).train()

    def step(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: F.cross_entropy(run(), train.kinds[:BATCH])

    first = {arm: [tensor[:BATCH] for tensor in own] for arm, own in seen.items()}
    return {
        "probe": saved_by(probe, step(lambda: probe(first["probe"]))),
        "unipt": saved_by(beside, step(lambda: beside(first["unipt"]))),
        "full": saved_by(whole.train(), step(lambda: whole(train.images[:BATCH]))),
    }


def _row(arm: str, found: Sequence[float] | None, saved: int) -> dict[str, Value]:
    return {
        "arm": arm,
        "accuracy (%)": None if found is None else round(mean(found), 1),
        "by seed (%)": None if found is None else ", ".join(f"{own:.1f}" for own in found),
        "saved for backward (MiB)": round(saved / 2**20, 2),
    }


def _claim(ratio: float | None) -> Claim:
    text = "photos: bytes saved for backward by UniPT over full fine-tuning"
    return Claim(text, ratio, "<=", 1 / 3)
