"""Where MRT's editors stand, and what they compute."""

from __future__ import annotations

from dataclasses import dataclass

from pyext_plugins.reft.config import EditorConfig, check_ends, check_rank_of


@dataclass(frozen=True)
class MrtConfig(EditorConfig):
    """Editors in a LLaVA model; the fields of `EditorConfig` hold for all of them.

    Ranks and numbers of tokens are the paper's. Its code edits 6 tokens at each end, and vision
    blocks 1 to 22 of 24; what the paper says of every odd block being best is ``text_layers``.

    Args:
        form: "mrt", unlike in `EditorConfig`: with an activation, ``f(W h + b - R h)``.
        vision_rank: of the editors after vision blocks and after the projector.
        text_rank: of those after blocks of the language model.
        prefix, suffix: how many of a question's first and last tokens are edited; see
            `MrtEditor.positions`.
        tied: one editor for both ends of a block; else each has its own.
        vision_layers: numbers of vision blocks; None for all whose output is used, () for none.
        projector: whether there is an editor after the projector.
        text_layers: numbers of the language model's blocks; None for all, () for none.

    Raises:
        ValueError: a value is outside its range.
    """

    form: str = "mrt"
    vision_rank: int = 6
    text_rank: int = 4
    prefix: int = 4
    suffix: int = 4
    tied: bool = False
    vision_layers: tuple[int, ...] | None = None
    projector: bool = True
    text_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank_of("vision_rank", self.vision_rank)
        check_rank_of("text_rank", self.text_rank)
        check_ends(self.prefix, self.suffix)

    @property
    def editors_per_block(self) -> int:
        """Of the language model."""
        return 2 if not self.tied and self.prefix and self.suffix else 1
