"""A model that learns one modality after the other; see `PathWeave`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from pyext.interface.checks import check_choice
from pyext.interface.lowrank_checks import MAX_RANK
from pyext_plugins.pathweave.noise import Noise
from pyext_plugins.pathweave.paths import GATES, Gate, PathLinear, Stage

RANK = 8
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_CROSS_KEY = re.compile(r"(.*\.)?crossattention\.attention\.key")


@dataclass(frozen=True)
class Modality:
    """One that was learned.

    Args:
        name: letters, digits, "_" and "-".
        rank: of its adapters.
        gate: "noisy", "soft" or "none".
        reuse: whether the adapters of earlier modalities are on its path.
    """

    name: str
    rank: int = RANK
    gate: Gate = "noisy"
    reuse: bool = True


class PathWeave(nn.Module):
    """A frozen model, some of whose linear layers have a path for each modality.

        model.qformer = PathWeave(model.qformer, qformer_sites(model.qformer))
        model.qformer.add_modality("video")   # train it; then
        model.qformer.add_modality("audio")   # freezes "video", and builds on it
        model.qformer.set_modality("video")   # to the bit what it was

    An earlier path can only stay what it was if nothing on it is trained again: all parameters
    but those of the newest modality are frozen, and `forward` refuses to train otherwise. Pieces
    outside that a modality trains too, such as query tokens or a LayerNorm of an encoder, are the
    caller's to keep and to change with the modality.

    Each modality has parameters of its own, which are stacked when they are used: a slice of one
    stacked parameter could not be frozen, weight decay would move it.

    It is no peft tuner, since peft (0.21) registers only methods that its own list of types names.
    Attributes it does not have are the model's.

    Args:
        model: is changed in place: its parameters are frozen, layers at the sites replaced.
        sites: names of linear layers, as in ``model.named_modules()``.
        plain: those of the sites whose adapters are summed without gates and in-adapters, such as
            the projection to a language model.
        generator: of the gates' noise; None for torch's own. With gradient checkpointing it needs
            ``context_fn=model.same_noise``.

    Raises:
        ValueError, TypeError: a site is not there, or no linear layer.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[str],
        *,
        plain: Sequence[str] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_sites(model, sites, plain)
        self.model = model.requires_grad_(False)
        self.noise = Noise(generator)
        self.sites = {name: self._replace(name, name in plain) for name in sites}
        self.learned: list[Modality] = []
        self._kept = self._all_but_newest()
        self.training = model.training

    def _replace(self, name: str, plain: bool) -> PathLinear:
        path = PathLinear(
            cast(nn.Linear, self.model.get_submodule(name)),
            self.noise,
            plain,
            _CROSS_KEY.fullmatch(name) is not None,
        ).train(self.model.training)
        self.model.set_submodule(name, path)
        return path

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    @property
    def modalities(self) -> list[str]:
        """Names, in the order of learning."""
        return [modality.name for modality in self.learned]

    @property
    def modality(self) -> str | None:
        """The one whose path is set."""
        active = next(iter(self.sites.values())).active
        return None if active is None else self.modalities[active]

    def add_modality(
        self, name: str, *, rank: int = RANK, gate: Gate = "noisy", reuse: bool = True
    ) -> None:
        """Begin one more: everything so far is frozen, and the new path set. It starts as the model
        alone where nothing is reused.

        Args:
            name: not yet used; letters, digits, "_" and "-".
            rank: of its adapters; others may have other ranks.
            gate: "noisy"; "soft", without noise; or "none", the plain sum.
            reuse: have the adapters of all earlier modalities on the path, each through an
                in-adapter. Without, the modality stands alone.

        Raises:
            ValueError: an argument is wrong; nothing is changed.
        """
        self._check_new(name, rank, gate)
        self.model.requires_grad_(False)
        for path in self.sites.values():
            path.add(rank, gate, reuse).train(path.training)
        self.learned.append(Modality(name, rank, gate, reuse))
        self._kept = self._all_but_newest()
        self.set_modality(name)

    def _check_new(self, name: str, rank: int, gate: str) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f'name: expected letters, digits, "_" and "-", got {name!r}')
        if name in self.modalities:
            raise ValueError(f"name: {name!r} is learned already; learned: {self._names()}")
        check_choice("gate", gate, GATES)
        for site, path in self.sites.items():
            most = min(path.linear.in_features, path.linear.out_features, MAX_RANK)
            if not 1 <= rank <= most:
                raise ValueError(f"rank: expected 1 to {most} at site {site!r}, got {rank}")

    def set_modality(self, name: str | None) -> None:
        """Take the path of a modality; None for the model alone.

        Raises:
            ValueError: it is not learned.
        """
        if name is not None and name not in self.modalities:
            raise ValueError(f"unknown modality {name!r}; learned: {self._names()}")
        for path in self.sites.values():
            path.active = None if name is None else self.modalities.index(name)

    def stage(self, site: str, name: str) -> Stage:
        """What a modality has at a site."""
        return cast(Stage, self.sites[site].stages[self.modalities.index(name)])

    def stage_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """What a modality added, by ``"site/name"``.

        Raises:
            ValueError: it is not learned.
        """
        if name not in self.modalities:
            raise ValueError(f"unknown modality {name!r}; learned: {self._names()}")
        return {
            f"{site}/{key}": parameter
            for site in self.sites
            for key, parameter in self.stage(site, name).named_parameters()
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives on the path that is set.

        Raises:
            RuntimeError: it is being trained, and with it something that earlier paths need.
        """
        if self.training and torch.is_grad_enabled():
            self.check_frozen()
        return self.model(*args, **kwargs)

    def check_frozen(self) -> None:
        """Refuse any parameter under training that is not the newest modality's.

        Raises:
            RuntimeError: there is one.
        """
        for prefix, module in self._kept:
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.requires_grad:
                    raise RuntimeError(
                        f"refusing to train {self.modality!r}: {prefix}.{name} is trainable, but "
                        f"the paths of others need it as it is; learned: {self._names()}"
                    )

    def _all_but_newest(self) -> list[tuple[str, nn.Module]]:
        """Modules with parameters that must stay; found once, since each step looks at them."""
        newest = {
            module
            for path in self.sites.values()
            for stage in path.stages[-1:]
            for module in stage.modules()
        }
        return [
            (name, module)
            for name, module in self.model.named_modules()
            if module._parameters and module not in newest
        ]

    def same_noise(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """The ``context_fn`` of `torch.utils.checkpoint` (and, in transformers, of
        ``gradient_checkpointing_kwargs``) by which gates meet the same noise again."""
        return self.noise.same()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write all paths; see `files.save_paths`."""
        from pyext_plugins.pathweave.files import save_paths

        save_paths(self, folder)

    @classmethod
    def from_pretrained(cls, model: nn.Module, folder: str | Path) -> PathWeave:
        """The paths of a folder in the model that they were learned on, its sites included; see
        `files.load_paths`."""
        from pyext_plugins.pathweave.files import load_paths, read_config

        content = read_config(Path(folder))
        return load_paths(cls(model, content["sites"], plain=content["plain"]), folder)

    def _names(self) -> str:
        return ", ".join(self.modalities) or "none"


def _check_sites(model: nn.Module, sites: Sequence[str], plain: Sequence[str]) -> None:
    known = dict(model.named_modules())
    if not sites or len(set(sites)) < len(sites):
        raise ValueError(f"sites: expected names of layers, each once, got {list(sites)}")
    for name in sites:
        if name not in known:
            raise ValueError(f"sites: {type(model).__name__} has no module {name!r}")
        if type(known[name]) is not nn.Linear:
            raise TypeError(
                f"sites: expected torch.nn.Linear at {name!r}, got {type(known[name]).__name__}"
            )
    left = sorted(set(plain) - set(sites))
    if left:
        raise ValueError(f"plain: expected some of the sites, got {left[0]!r}")
