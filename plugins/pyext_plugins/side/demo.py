"""The demos: all arms on the digits study, and what of it may be claimed.

Shown: how much is kept for the backward pass, and that reading all hidden states beats reading the
last. Not shown, since a study of this size cannot: that one side network is better than another.
Where the data is at hand, memory and speed on film reviews with a pre-trained MiniLM, and memory on
photos with a pre-trained EfficientNet-Lite0.
"""

from __future__ import annotations

import copy
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from pyext import environment
from pyext.ops import side as ops
from pyext.report import Claim, Report, Value
from pyext.show import show_rows
from pyext_plugins.memory import SAVED
from pyext_plugins.side import digits, photos, reviews
from pyext_plugins.side.chart import save_chart
from pyext_plugins.side.digits import ARMS, LAST_ONLY, ROTATIONS
from pyext_plugins.side.model import SideModel

SEEDS = 3
MIB = 2**20
METHODS = {"unipt": "UniPT", "sherl": "SHERL"}
ORDER = ("probe", "unipt", "sherl", "lst", "adapter", "full")  # by bytes saved for backward
MIND = [
    "No order among the accuracies of unipt, sherl, lst and adapter is claimed: a study of this "
    "size does not settle it.",
    "Nor is it claimed that SHERL's redundancy term raises accuracy: what it does is shown by the "
    "claims on repeated taps.",
    "Of accuracy on reviews and photos nothing is claimed: with so few of them and of steps the "
    "order of the arms depends on their step sizes.",
    "All arms take the same number of steps; full fine-tuning would gain from more of them.",
]


@dataclass
class Study:
    """What was measured: accuracies in percent by arm, one a seed; bytes by arm."""

    accuracies: dict[str, list[float]]
    saved: dict[str, int]
    trained: dict[str, int]
    frozen_gradients: int
    gammas: list[float]

    def gains(self, better: str, worse: str) -> list[float]:
        pairs = zip(self.accuracies[better], self.accuracies[worse], strict=True)
        return [first - second for first, second in pairs]


def unipt(output: Path) -> Report:
    """All arms on the digits; claims on UniPT. Writes chart.png."""
    study = _run(output)
    over_last = study.gains("unipt", LAST_ONLY)
    claims = [
        Claim("above its own kind fed the last layer only, least gain", min(over_last), ">=", 0),
        Claim("the same, mean gain in points", statistics.mean(over_last), ">=", 1),
        Claim("above the probe, least gain in points", min(study.gains("unipt", "probe")), ">=", 8),
    ]
    return _report("unipt", output, study, claims)


def sherl(output: Path) -> Report:
    """All arms on the digits; claims on SHERL. Writes chart.png."""
    study = _run(output)
    claims = [
        Claim("above the probe, least gain in points", min(study.gains("sherl", "probe")), ">=", 0),
        Claim("the gate moves away from 0, least of all seeds", min(study.gammas), ">=", 1e-4),
        Claim(
            "a tap unlike n equal ones gets half the weight, largest error for n to 10",
            max(abs(_share_of_the_odd_one(n) - 0.5) for n in (1, 2, 5, 10)),
            "<=",
            1e-6,
        ),
        Claim(
            "a tap repeated 5 times moves the merge, relative to what it moves unweighted",
            _moved_by_repetition(),
            "<=",
            0.5,
        ),
    ]
    return _report("sherl", output, study, claims)


def _run(output: Path) -> Study:
    data = digits.load_digits()
    backbone = digits.backbone(data, output / "backbone.safetensors")
    study = Study({arm: [] for arm in ARMS}, {}, {}, 0, [])
    test = data.test.rotated(seed=0)
    work = [(seed, arm) for seed in range(SEEDS) for arm in ARMS]
    console = Console(stderr=True)
    for seed, arm in track(work, "arms and seeds", console=console, transient=True):
        pictures = data.labelled(seed).rotated(seed + 1)
        reader = digits.build(arm, copy.deepcopy(backbone), ROTATIONS, seed)
        if seed == 0:
            study.saved[arm] = digits.saved(arm, reader, pictures)
            trained = [p.numel() for p in reader.parameters() if p.requires_grad]
            study.trained[arm] = sum(trained)
        digits.fit(reader, pictures, seed, digits.taps_of(arm, reader, pictures.images))
        taps = digits.taps_of(arm, reader, test.images)
        study.accuracies[arm].append(digits.accuracy(reader, test, taps))
        if arm in digits.CONFIGS:
            encoder = cast(SideModel, reader.encoder)
            own = encoder.backbone.parameters()
            study.frozen_gradients += sum(parameter.grad is not None for parameter in own)
        if arm == "sherl":
            study.gammas.append(abs(float(cast(Tensor, encoder.side.gamma).detach())))
    return study


def _report(method: str, output: Path, study: Study, claims: list[Claim]) -> Report:
    memory = [
        Claim(
            f"saved for backward: {more} over {less}",
            study.saved[more] / study.saved[less],
            ">=",
            1,
        )
        for less, more in zip(ORDER, ORDER[1:], strict=False)
    ]
    frozen = Claim(
        "parameters of frozen backbones with a gradient", study.frozen_gradients, "<=", 0
    )
    review_rows, review_claims = reviews.compare(method)
    photo_rows, photo_claims = photos.compare() if method == "unipt" else ([], [])
    for rows, title in ((review_rows, reviews.TITLE), (photo_rows, photos.TITLE)):
        if rows:
            show_rows(rows, title=title)
    for sentence in MIND:
        print(f"mind: {sentence}")
    chart = output / "chart.png"
    save_chart(chart, {arm: (study.saved[arm] / MIB, study.accuracies[arm]) for arm in ARMS})
    return Report(
        title=f"{METHODS[method]}: a ViT of digits learns to tell rotations, {SEEDS} seeds",
        rows=[_row(arm, study) for arm in ARMS],
        claims=[*claims, *memory, frozen, *review_claims, *photo_claims],
        pictures={"accuracy and bytes saved for backward of all arms": chart},
        facts={
            "mind": MIND,
            "memory": f"of a step of {digits.MEASURED_BATCH} pictures; {SAVED}",
            "accuracies by seed (%)": study.accuracies,
            "reviews": review_rows,
            "photos": photo_rows,
            "environment": environment.describe(),
        },
    )


def _row(arm: str, study: Study) -> dict[str, Value]:
    found = study.accuracies[arm]
    return {
        "arm": arm,
        "trained parameters": study.trained[arm],
        "accuracy (%)": round(statistics.mean(found), 1),
        "least (%)": round(min(found), 1),
        "most (%)": round(max(found), 1),
        "saved for backward (MiB)": round(study.saved[arm] / MIB, 2),
    }


def _merge(taps: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
    """The anti-redundant merge of taps [K, d], all of them equally relevant: z [d], beta [K]."""
    width = taps.shape[1]
    relevance = torch.zeros(width), torch.ones(1)
    merged = ops.antired(
        guide.view(1, 1, width),
        taps.view(1, -1, 1, width),
        None,
        None,
        *relevance,
        eps_l1=1e-8,
        eps_l2=1e-8,
        add_guide=False,
    )
    return merged.z.flatten(), merged.beta.flatten()


def _share_of_the_odd_one(n: int) -> float:
    """The weight of a tap that is orthogonal to n equal ones."""
    taps = torch.eye(2)[[0] * n + [1]]
    return float(_merge(taps, torch.ones(2))[1][-1])


def _moved_by_repetition() -> float:
    """How far one of six random taps moves the merge when it is there 5 times, over how far it
    moves their mean."""
    taps = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    repeated = torch.cat([taps, taps[:1].expand(4, -1)])
    guide = torch.ones(32)
    moved = _merge(repeated, guide)[0] - _merge(taps, guide)[0]
    return float(moved.norm() / (repeated.mean(0) - taps.mean(0)).norm())
