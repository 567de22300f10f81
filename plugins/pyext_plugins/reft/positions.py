"""Which tokens are edited: from masks, ids and labels, for padding on any side.

All functions work on the device of their arguments and wait for nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100  # the label of what is not learned


def prompt(real: Tensor, labels: Tensor | None) -> Tensor:
    """Tokens before the answer: real ones before the first that has a label.

    Answers are not there when the model is asked, so a last token that lies in the answer would be
    another one in training than in use.

    Args:
        real: [B, S] bool, True where a token is no padding.
        labels: [B, S] int64, -100 where nothing is learned; None where there is no answer.

    Returns:
        [B, S] bool.
    """
    if labels is None:
        return real
    answered = (labels != IGNORED).cumsum(1) > 0
    return real & ~answered


def question(real: Tensor, image: Tensor, labels: Tensor | None) -> Tensor:
    """Tokens of the prompt after the last token of an image; all of it where there is no image.

    What the template puts behind the image, as a line break or the word that asks for the answer,
    is of the question. An answer is what has a label, from the first such token after the image.

    Args:
        real: [B, S] bool, True where a token is no padding.
        image: [B, S] bool, True where a token stands for a part of an image.
        labels: [B, S] int64, -100 where nothing is learned; or None.

    Returns:
        [B, S] bool.
    """
    later = image.flip(1).cumsum(1).flip(1) > 0  # at or before the last of an image
    behind = real & ~later
    if labels is None:
        return behind
    return prompt(behind, labels.masked_fill(~behind, IGNORED))


def ends(counting: Tensor, prefix: int, suffix: int) -> Tensor:
    """Rows of the first and last tokens that count, no row twice.

    Of a sample where n tokens count, the first ``p = min(prefix, floor(n / 2))`` and the last
    ``s = min(suffix, ceil(n / 2))``.

    Args:
        counting: [B, S] bool.
        prefix, suffix: how many tokens at most.

    Returns:
        [B, prefix + suffix] int64, rows of [B * S], the first ``prefix`` columns those of the
        prefix; -1 for none.
    """
    batch, length = counting.shape
    n = counting.sum(1, keepdim=True)
    # The tokens that count come first, in their order.
    order = (~counting).to(torch.uint8).argsort(dim=1, stable=True)
    first = torch.arange(prefix, device=counting.device).expand(batch, -1)
    back = torch.arange(suffix, device=counting.device).expand(batch, -1)
    s = (n + 1).div(2, rounding_mode="floor").clamp(max=suffix)
    numbers = torch.cat([first, n - s + back], 1)
    exists = torch.cat([first < n.div(2, rounding_mode="floor"), back < s], 1)
    tokens = order.gather(1, numbers.clamp(0, length - 1))
    start = torch.arange(batch, device=counting.device).unsqueeze(1) * length
    return torch.where(exists, tokens + start, -1)
