"""What a side network is to be like: one class a method, read from and written to JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

UNIPT_PRESETS = ("bert_seq", "joint_vl", "clip_token")
SHERL_DOWNS = ("plain", "gated")


@dataclass(frozen=True, kw_only=True)
class SideConfig:
    """What all methods share.

    Args:
        reduction: the side network is this many times narrower than the backbone.
        taps: which hidden states are read, 0 being the embeddings and k the output of block k;
            None for all that the method can read.
        layers: the path of the backbone's blocks, such as "encoder.layer"; None to find them.
        backbone_dropout: leave the backbone in training mode, its dropout on, as the authors do.
            Hidden states then differ from step to step and cannot be cached.

    Raises:
        ValueError: a value is outside its range.
    """

    method: ClassVar[str]
    reduction: int = 2
    taps: tuple[int, ...] | None = None
    layers: str | None = None
    backbone_dropout: bool = False

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise ValueError(f"reduction: expected at least 1, got {self.reduction}")
        if self.taps is not None and list(self.taps) != sorted(set(self.taps)):
            raise ValueError(f"taps: expected rising numbers, got {list(self.taps)}")

    def as_json(self) -> dict[str, Any]:
        return {"method": self.method, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class UniptConfig(SideConfig):
    """UniPT. ``preset``: "bert_seq" (a sequence of tokens), "joint_vl" (text and image tokens in
    one sequence) or "clip_token" (one summary token of a CLIP tower)."""

    method: ClassVar[str] = "unipt"
    preset: str = "bert_seq"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in UNIPT_PRESETS:
            raise ValueError(
                f"preset: expected one of {', '.join(UNIPT_PRESETS)}, got {self.preset!r}"
            )


@dataclass(frozen=True, kw_only=True)
class SherlConfig(SideConfig):
    """SHERL. ``down``: "plain" (Linear, LayerNorm) or "gated" (the sensing adapter)."""

    method: ClassVar[str] = "sherl"
    down: str = "plain"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.down not in SHERL_DOWNS:
            raise ValueError(f"down: expected one of {', '.join(SHERL_DOWNS)}, got {self.down!r}")


@dataclass(frozen=True, kw_only=True)
class LadderConfig(SideConfig):
    """Ladder side tuning. ``heads``: of the attention in its own blocks; divides their width."""

    method: ClassVar[str] = "lst"
    reduction: int = 8
    heads: int = 4


CONFIGS: dict[str, type[SideConfig]] = {
    config.method: config for config in (UniptConfig, SherlConfig, LadderConfig)
}


def config_from_json(content: dict[str, Any]) -> SideConfig:
    """The config that `SideConfig.as_json` wrote.

    Raises:
        ValueError: it names no method, or a field that the method does not have.
    """
    fields = dict(content)
    method = fields.pop("method", None)
    if method not in CONFIGS:
        raise ValueError(f"method: expected one of {', '.join(CONFIGS)}, got {method!r}")
    if fields.get("taps") is not None:
        fields["taps"] = tuple(fields["taps"])
    try:
        return CONFIGS[method](**fields)
    except TypeError as error:
        raise ValueError(f"{method}: {error}") from error
