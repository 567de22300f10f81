"""Ladder side tuning: small transformer blocks beside the backbone's, each fed by one of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyext.ops import side as ops

TEMPERATURE = 0.1  # of the mixing gates


class LadderBlock(nn.Module):
    """A transformer block with norms before attention and MLP; not causal."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B, N, d] to the same; ``mask`` is [B, N] bool, True where a token may be seen."""
        batch, tokens, width = x.shape
        split = (batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(self.attention_norm(x)).view(split).permute(2, 0, 3, 1, 4)
        keys = None if mask is None else mask[:, None, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.narrow(F.gelu(self.widen(self.mlp_norm(x))))


class LadderSide(nn.Module):
    """The ladder. Its weights start at random: the pruning of the backbone's that the authors start
    from is not done here.

    Args:
        widths: channels of the K taps. The first starts the ladder, each other feeds one rung.
        width: d, of the side network.
        out: E, channels of the result.
        heads: of the attention; divides ``width``.

    Raises:
        ValueError: fewer than two taps, or the heads do not divide the width.
    """

    def __init__(self, widths: Sequence[int], width: int, out: int, heads: int = 4) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError("lst needs at least two taps")
        self.down = nn.ModuleList(nn.Linear(channels, width) for channels in widths)
        self.mix = nn.Parameter(torch.zeros(len(widths) - 1))
        self.blocks = nn.ModuleList(LadderBlock(width, heads) for _ in widths[1:])
        self.up = nn.Linear(width, out)

    def forward(self, taps: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        """The adapted features [B, N, E] of K taps [B, N, D_k]; mask [B, N] bool, True = counts.

        A rung runs on ``mu h + (1 - mu) (W tap + b)`` with mu = sigmoid(mix / T).
        """
        dtype = self.up.weight.dtype
        mu = torch.sigmoid(self.mix / TEMPERATURE)
        first = self.down[0]
        h = ops.up(taps[0].to(dtype), first.weight, first.bias)
        for k, block in enumerate(self.blocks):
            down, share = self.down[k + 1], mu[k]
            tap = taps[k + 1].to(dtype)
            mixed = ops.up(
                tap, down.weight, down.bias, residual=h, res_scale=share, out_scale=1 - share
            )
            h = block(mixed, mask)
        return ops.up(h, self.up.weight, self.up.bias)
