"""Training data in which originals are replaced by synthetic pictures of their class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from pyext_plugins.diffii.images import read_folder


class Labelled(Protocol):
    """A data set as torchvision has them: pairs of a sample and the number of its class."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


class Pictures:
    """The pictures of a folder with a folder for each class, as RGB; torchvision's `ImageFolder`
    without torchvision.

    Args:
        root: the folder.
        transform: applied to each picture, a Pillow image.

    Raises:
        UserError: there are no pictures in it.
    """

    def __init__(self, root: str | Path, transform: Callable[[Any], Any] | None = None) -> None:
        folder = read_folder(Path(root), "root")
        self.classes = folder.classes
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.samples = [(folder.path(*entry), numbers[entry[0]]) for entry in folder.entries()]
        self.targets = [number for _, number in self.samples]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, target = self.samples[index]
        with Image.open(path) as opened:
            image: Any = opened.convert("RGB")
        return image if self.transform is None else self.transform(image), target


class Replaced:
    """Originals, each replaced with probability p by a random synthetic of its class.

    Drawn anew whenever a sample is asked for, from torch's own generator, which every worker of a
    `DataLoader` has its own seed of; a class without synthetics keeps its originals.

    Args:
        originals: gives its length, the order and the labels.
        synthetics: with ``targets``, the class number of each sample, as torchvision's data sets
            have it. If both have ``classes``, these are matched by name.
        p: probability, in [0, 1].

    Raises:
        ValueError: p is outside [0, 1], or a synthetic's class is none of the originals'.
        TypeError: the synthetics have no ``targets``.
    """

    def __init__(self, originals: Labelled, synthetics: Labelled, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p: expected a probability in [0, 1], got {p}")
        targets: Sequence[int] | None = getattr(synthetics, "targets", None)
        if targets is None:
            raise TypeError(
                f"synthetics: expected a data set with targets, got {type(synthetics).__name__}"
            )
        self.originals, self.synthetics, self.p = originals, synthetics, p
        known = getattr(originals, "classes", None)
        own = getattr(synthetics, "classes", None)
        if known is not None and own is not None:
            strange = [name for name in own if name not in known]
            if strange:
                raise ValueError(
                    f"synthetics: expected classes of the originals, got {strange[0]!r}; those "
                    f"have {', '.join(map(str, known))}"
                )
            targets = [known.index(own[int(target)]) for target in targets]
        self._of_class: dict[int, list[int]] = {}
        for index, target in enumerate(targets):
            self._of_class.setdefault(int(target), []).append(index)

    def __len__(self) -> int:
        return len(self.originals)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        sample, target = self.originals[index]
        candidates = self._of_class.get(int(target))
        if candidates and float(torch.rand(())) < self.p:
            chosen = candidates[int(torch.randint(len(candidates), ()))]
            sample, _ = self.synthetics[chosen]
        return sample, target
