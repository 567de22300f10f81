"""From words of a prompt to the places they attend to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pyext_plugins.vcedit.lifting import resize_bilinear

MAX_TOKENS = 77  # of a CLIP text encoder, start and end included
PUNCTUATION = ".,;:!?\"'()"


def word_tokens(prompt: str, words: str, encode: Callable[[str], Sequence[int]]) -> list[int]:
    """Positions of the tokens of consecutive words, wherever the prompt has them.

    Args:
        prompt: what the text encoder gets.
        words: one word or several; case and punctuation around a word do not matter.
        encode: token ids of a text, without start and end; one that goes word by word, as CLIP's:
            ``lambda text: tokenizer(text, add_special_tokens=False).input_ids``.

    Returns:
        Ascending, the start token being position 0.

    Raises:
        ValueError: the words are not in the prompt, or the prompt is too long for the encoder.
    """
    parts = prompt.split()
    ends = [1]
    for part in parts:
        ends.append(ends[-1] + len(encode(part)))
    if ends[-1] + 1 > MAX_TOKENS:
        raise ValueError(f"prompt: expected at most {MAX_TOKENS} tokens, got {ends[-1] + 1}")
    plain = [part.strip(PUNCTUATION).lower() for part in parts]
    wanted = [word.strip(PUNCTUATION).lower() for word in words.split()]
    positions: set[int] = set()
    for first in range(len(plain) - len(wanted) + 1):
        if wanted and plain[first : first + len(wanted)] == wanted:
            positions |= set(range(ends[first], ends[first + len(wanted)]))
    if not positions:
        raise ValueError(f"words: {words!r} is not in the prompt {prompt!r}")
    return sorted(positions)


def word_map(
    maps: Mapping[str, Tensor], positions: Sequence[int], height: int, width: int
) -> Tensor:
    """Where the tokens attend: the mean over layers, heads and tokens.

    Args:
        maps: square cross-attention maps by module name, [V, ..., s s, tokens].
        positions: of the tokens.
        height, width: of the result; maps of other sizes are resized bilinearly.

    Returns:
        [V, height, width, 1].

    Raises:
        ValueError: a map is not square.
    """
    total = []
    for name, value in maps.items():
        side = round(value.shape[-2] ** 0.5)
        if side * side != value.shape[-2]:
            raise ValueError(f"{name}: {value.shape[-2]} positions are no square map")
        attended = value[..., list(positions)].float().mean(-1).flatten(1, -2).mean(1)
        total.append(resize_bilinear(attended.reshape(-1, side, side, 1), height, width))
    return torch.stack(total).mean(0)


def blend_masks(maps: Tensor, threshold: float) -> Tensor:
    """Where a map [V, h, w, D] exceeds a share of its largest value in the view; bool."""
    return maps > threshold * maps.amax((1, 2), keepdim=True)
