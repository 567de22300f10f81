"""What an editor computes, and where a `reft` editor stands."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, TypeVar

from pyext.interface.lowrank_checks import ACTIVATIONS, MAX_RANK

FORMS = ("reft", "mrt")
STARTS = ("identity", "random")


class Kind(NamedTuple):
    """One of the ReFT family, ``h' = h + R^T u``: what ``u`` is made of.

    orthonormal: R is kept orthonormal; without, it is any matrix (the papers call it V).
    learned: ``u`` has ``f(W h + b)``; without, only b.
    subtracts: ``u`` has ``- R h``: what is in the subspace is replaced, not added to.
    """

    orthonormal: bool
    learned: bool
    subtracts: bool


KINDS = {
    "loreft": Kind(True, True, True),
    "noreft": Kind(False, True, True),
    "direft": Kind(True, True, False),
    "nodireft": Kind(False, True, False),
    "consreft": Kind(True, False, True),
    "lobireft": Kind(True, False, False),
}


@dataclass(frozen=True)
class EditorConfig:
    """What an editor computes of a hidden state h [D].

    Args:
        kind: "loreft" ``u = f(W h + b) - R h``; "noreft" the same with R any matrix; "direft"
            ``u = f(W h + b)`` with R orthonormal (as in the authors' code), "nodireft" with R any
            matrix (as in their paper); "consreft" ``u = b - R h``; "lobireft" ``u = b``.
        act: f.
        form: where f stands in "loreft" and "noreft": "reft" as above, "mrt" ``f(W h + b - R h)``.
        dropout: share of the values of the added edit ``R^T u`` that is dropped in training.
        start: "identity": the model is what it was, to the bit, until the first step (W := R, or
            W := 0 where nothing is subtracted; b := 0). "random": W and b as in a linear layer.

    Raises:
        ValueError: a value is outside its range, or no identity can be had of the kind.
    """

    kind: str = "loreft"
    act: str = "identity"
    form: str = "reft"
    dropout: float = 0.0
    start: str = "identity"

    def __post_init__(self) -> None:
        choices: dict[str, Collection[str]] = {
            "kind": KINDS,
            "act": ACTIVATIONS,
            "form": FORMS,
            "start": STARTS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 to below 1, got {self.dropout}")
        kind = KINDS[self.kind]
        if not kind.learned and self.act != "identity":
            raise ValueError(f"act: {self.kind} has nothing to activate, expected identity")
        if self.start == "identity":
            self._check_identity(kind)

    def _check_identity(self, kind: Kind) -> None:
        if kind.subtracts and not kind.learned:
            raise ValueError(
                f"start: {self.kind} replaces what is in its subspace from the start, expected "
                "'random'"
            )
        if self.op_form == "reft":
            raise ValueError(
                f"start: f(R h) - R h is not 0 with act {self.act!r}: expected form 'mrt', act "
                "'identity' or start 'random'"
            )
        if kind.learned and self.act == "relu":
            raise ValueError(
                "start: relu has no slope at 0, so an identity would never be left: expected "
                "start 'random' or another act"
            )

    @property
    def op_form(self) -> str:
        """The form of `pyext.ops.lowrank.rows`: all but one are "add", with A = W - R or W."""
        kind = KINDS[self.kind]
        between = self.act != "identity" and self.form == "reft"
        return "reft" if kind.learned and kind.subtracts and between else "add"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ReftConfig(EditorConfig):
    """Editors after the blocks of a model, at the first and the last tokens of each sample.

    Of a sample with n tokens that count, the first ``min(prefix, floor(n / 2))`` and the last
    ``min(suffix, ceil(n / 2))`` are edited: no token twice. See `positions` for which count.

    Args:
        rank: r, of each editor.
        prefix, suffix: how many tokens.
        tied: one editor for both ends of a block; else each has its own.
        layers: numbers of the blocks after which to edit; None for all.
        blocks: where the blocks are, for a model with several lists of them.

    Raises:
        ValueError: a value is outside its range.
    """

    rank: int = 8
    prefix: int = 7
    suffix: int = 7
    tied: bool = True
    layers: tuple[int, ...] | None = None
    blocks: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank_of("rank", self.rank)
        check_ends(self.prefix, self.suffix)

    @property
    def editors_per_block(self) -> int:
        return 2 if not self.tied and self.prefix and self.suffix else 1


def check_rank_of(name: str, rank: int) -> None:
    """Raises: ValueError: `pyext.ops.lowrank.orthonormalize` does not take such a rank."""
    if not 1 <= rank <= MAX_RANK // 2:
        raise ValueError(f"{name}: expected 1 to {MAX_RANK // 2}, got {rank}")


def check_ends(prefix: int, suffix: int) -> None:
    """Raises: ValueError: tokens cannot be counted so."""
    for name, count in (("prefix", prefix), ("suffix", suffix)):
        if count < 0:
            raise ValueError(f"{name}: expected a number of tokens from 0, got {count}")


def pick_layers(name: str, layers: Sequence[int] | None, count: int) -> list[int]:
    """Numbers of blocks, sorted; all ``count`` of them for None.

    Raises:
        ValueError: there is no such block, or one is named twice.
    """
    chosen = sorted(range(count) if layers is None else layers)
    for layer in chosen:
        if not 0 <= layer < count:
            raise ValueError(f"{name}: expected blocks from 0 to {count - 1}, got {layer}")
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"{name}: a block is named twice in {list(chosen)}")
    return chosen


Config = TypeVar("Config", bound=EditorConfig)


def config_from_json(kind: type[Config], content: Mapping[str, Any]) -> Config:
    """Raises: ValueError: there is a setting of no such name, or a value does not fit."""
    known = {field.name for field in fields(kind)}
    if unknown := sorted(set(content) - known):
        raise ValueError(f"unknown setting {unknown[0]!r}")
    lists = {name: tuple(value) for name, value in content.items() if isinstance(value, list)}
    return kind(**{**content, **lists})
