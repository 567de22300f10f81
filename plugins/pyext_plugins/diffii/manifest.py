"""The list of the images to be generated: all that each of them depends on, in JSON lines.

The first line holds what all have in common, each of the others is an image. They are generated in
batches of consecutive lines, `batch` of the first line at a time. A U-Net may give other last bits
to an image in other company, so an image is always made in its own batch, alone or not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyext.errors import UserError, did_you_mean
from pyext.files import whole_file
from pyext.interface.circle import NORMS
from pyext.ops import circle
from pyext_plugins.diffii.circles import draw_angles, draw_pairs, noise
from pyext_plugins.diffii.pool import Pool
from pyext_plugins.ranges import check_ranges

NAME = "manifest.jsonl"
CHOICES = {"norm": NORMS, "single": ("raise", "noise"), "degenerate": ("raise", "noise")}
STATUS = {1: "a vector of no length", 2: "parallel", 4: "opposite", 8: "not finite"}


@dataclass(frozen=True)
class Settings:
    """How images are drawn and generated.

    Args:
        expansion: images for each original.
        steps: of generation.
        guidance: weight of classifier-free guidance; 1 is none.
        suffixes: texts, one of which follows the prompt of an image in the first stage.
        suffix_fraction: share of the model's timesteps, from the noisiest on, that is the first
            stage.
        norm: how starting points lie between and around two inversions; see `circle.interp`.
        single: what to do for a class with one inversion: "raise", or start from "noise".
        degenerate: what to do for a pair on no circle: "raise", or start from "noise".
        batch: images denoised together.
        seed: of everything random.

    Raises:
        UserError: a value is outside its range, or suffixes come without their fraction.
    """

    expansion: int = 5
    steps: int = 25
    guidance: float = 7.5
    suffixes: tuple[str, ...] = ()
    suffix_fraction: float = 0.0
    norm: str = "paper"
    single: str = "raise"
    degenerate: str = "raise"
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "expansion": (1, 10_000),
            "steps": (1, 1000),
            "guidance": (1, 100),
            "suffix_fraction": (0, 1),
            "batch": (1, 4096),
            "seed": (0, 2**31 - 1),
        }
        check_ranges(self, ranges)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(
                    f"--{name}: expected {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if bool(self.suffixes) != (self.suffix_fraction > 0):
            given = "suffixes" if self.suffixes else "no suffixes"
            raise UserError(
                f"--suffix-fraction: expected above 0 with suffixes and 0 without, got "
                f"{self.suffix_fraction:g} with {given}"
            )


@dataclass(frozen=True)
class Image:
    """A line of the manifest.

    Args:
        id: class/number, also the name of its file without suffix.
        label: its class.
        pair: class/file of the two originals; None for one that starts from noise.
        rows: of the two inversions, among all; None for noise.
        alpha: angle between the inversions in radians; None for noise.
        phi: place on their circle in radians, with norm "lerp" or "slerp" the share of the way;
            None for noise.
        suffix: what follows the prompt in the first stage.
        seed: of the noise; None for a point on a circle.
        norms: |a|, |b| and |Z| over sqrt(D), or |Z| over sqrt(D) alone for noise.
    """

    id: str
    label: str
    pair: tuple[str, str] | None
    rows: tuple[int, int] | None
    alpha: float | None
    phi: float | None
    suffix: str
    seed: int | None
    norms: tuple[float, ...]


@dataclass(frozen=True)
class Manifest:
    """All images of a run.

    Args:
        facts: what they have in common besides settings: the model's weights, the inversions,
            versions of libraries, device and number of threads.
    """

    settings: Settings
    facts: dict[str, Any]
    images: list[Image]

    def batches(self) -> list[list[Image]]:
        size = self.settings.batch
        return [self.images[i : i + size] for i in range(0, len(self.images), size)]

    def batch_of(self, identity: str) -> list[Image]:
        """The batch in which an image is generated.

        Raises:
            UserError: there is no image of this id.
        """
        for batch in self.batches():
            if any(image.id == identity for image in batch):
                return batch
        ids = [image.id for image in self.images]
        hint = did_you_mean(identity, ids)
        raise UserError(f"--only: no image {identity!r}.{hint} They go from {ids[0]} to {ids[-1]}")

    def text(self) -> str:
        """What the file holds."""
        lines = [{"settings": asdict(self.settings), **self.facts}, *map(asdict, self.images)]
        return "".join(json.dumps(line) + "\n" for line in lines)

    def save(self, path: Path) -> None:
        with whole_file(path) as temporary:
            temporary.write_text(self.text())


def load_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        UserError: there is no such file, or it is not one of these.
    """
    try:
        first, *lines = (json.loads(line) for line in path.read_text().splitlines())
        settings = first.pop("settings")
        settings["suffixes"] = tuple(settings["suffixes"])
        tuples = ("pair", "rows", "norms")
        for line in lines:
            line |= {name: tuple(line[name]) for name in tuples if line[name] is not None}
        images = [Image(**line) for line in lines]
        return Manifest(Settings(**settings), first, images)
    except OSError as error:
        raise UserError(f"--output: {path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"--output: {path} is not a manifest of images: {error}") from error


def plan(pool: Pool, settings: Settings, facts: dict[str, Any]) -> Manifest:
    """Draw all images of a run: for each class, originals times expansion.

    Raises:
        UserError: a class has one inversion, or a pair lies on no circle, and the settings do not
            say to start from noise.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    images = [
        image for name in pool.classes for image in _plan_class(pool, name, settings, generator)
    ]
    return Manifest(settings, facts, images)


def _plan_class(
    pool: Pool, name: str, settings: Settings, generator: torch.Generator
) -> list[Image]:
    own = len(pool.tensors[name])
    count = own * settings.expansion
    # Drawn whether used or not, so that a choice made for one class does not change the others.
    seeds = torch.randint(2**31, (count,), generator=generator).tolist()
    angles = draw_angles(settings.norm, count, generator)
    suffixes = list(settings.suffixes) or [""]
    chosen = torch.randint(len(suffixes), (count,), generator=generator).tolist()
    ids = [f"{name}/{number:05d}" for number in range(count)]
    texts = [suffixes[i] for i in chosen]
    if own < 2:
        if settings.single != "noise":
            raise UserError(
                f"class {name!r} has 1 inversion; circle interpolation needs 2; set single='noise' "
                "(--single noise)"
            )
        rows = zip(ids, texts, seeds, strict=True)
        return [_of_noise(pool, name, *row) for row in rows]
    pairs = pool.first_row[name] + draw_pairs(own, count, generator)
    found = circle.interp(
        pool.all, pairs, angles[:, None], norm=settings.norm, on_degenerate="first"
    )
    alphas, images = _angles_between(found.gram), []
    dimensions = pool.all[0].numel()
    lengths = found.gram[:, :2].sqrt()
    lengths = torch.cat([lengths, found.z.double().flatten(1).norm(dim=1)[:, None]], 1)
    ratios = (lengths / math.sqrt(dimensions)).tolist()
    for k, identity in enumerate(ids):
        first, second = pairs[k].tolist()
        pair = (pool.names[first], pool.names[second])
        if found.status[k]:
            if settings.degenerate != "noise":
                raise UserError(_degenerate(pair, int(found.status[k]), alphas[k]))
            images.append(_of_noise(pool, name, identity, texts[k], seeds[k]))
            continue
        norms = tuple(ratios[k])
        image = (pair, (first, second), alphas[k], float(angles[k]), texts[k], None, norms)
        images.append(Image(identity, name, *image))
    return images


def _angles_between(gram: Tensor) -> list[float]:
    """alpha of each pair: phi is lambda alpha, and lambda is 1."""
    ones = torch.ones(len(gram), 1, dtype=torch.float64)
    return [float(alpha) for alpha in circle.phi_from_lambda(gram, ones)]


def _of_noise(pool: Pool, name: str, identity: str, suffix: str, seed: int) -> Image:
    x = noise(tuple(pool.all.shape[1:]), seed, pool.all.dtype).double()
    ratio = float(x.norm()) / math.sqrt(x.numel())
    return Image(identity, name, None, None, None, None, suffix, seed, (ratio,))


def _degenerate(pair: tuple[str, str], status: int, alpha: float) -> str:
    kinds = [text for bit, text in STATUS.items() if status & bit]
    return (
        f"inversions of {pair[0]} and {pair[1]}: {' and '.join(kinds)}, sin(alpha) = "
        f"{math.sin(alpha):.1e}; they lie on no circle. Is one a copy of the other? Remove it, or "
        "set degenerate='noise' (--degenerate noise)"
    )


def starting_points(pool: Pool, images: Sequence[Image], norm: str) -> Tensor:
    """Where the denoising of these images starts, [B, *S]."""
    x = torch.empty(len(images), *pool.all.shape[1:], dtype=pool.all.dtype)
    on_circle = [k for k, image in enumerate(images) if image.rows is not None]
    for k, image in enumerate(images):
        if image.seed is not None:
            x[k] = noise(tuple(x.shape[1:]), image.seed, x.dtype)
    if on_circle:
        pairs = torch.tensor([images[k].rows for k in on_circle])
        angles = torch.tensor([[images[k].phi] for k in on_circle], dtype=torch.float64)
        x[on_circle] = circle.interp(pool.all, pairs, angles, norm=norm).z[:, 0]
    return x


def difference(first: Manifest, second: Manifest) -> str | None:
    """In what two manifests differ, in words; None if they do not."""
    for field in fields(Settings):
        a, b = getattr(first.settings, field.name), getattr(second.settings, field.name)
        if a != b:
            return f"{field.name} {a}, this has {b}"
    for name in {**first.facts, **second.facts}:
        a, b = first.facts.get(name), second.facts.get(name)
        if a != b:
            return f"{name} {str(a)[:12]}, this has {str(b)[:12]}"
    return None if first.images == second.images else "other images"
