"""SHERL's early route: taps in, the input of the late layer out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyext.interface.side_blocks import Down, Gate, GatedDown, Up
from pyext.ops import side as ops
from pyext_plugins.side.parameters import weights_and_biases

TEMPERATURE = 0.1  # of the gate
DROPOUT = 0.1  # after the norm of the plain variant


class SherlSide(nn.Module):
    """The early route and the gate.

    Args:
        widths: channels of the K taps, of which the last guides the others.
        width: d, of the side network.
        out: E, channels of the late layer's input.
        gated: whether taps go down through the sensing adapter and the result up without a norm, as
            the authors have it for CLIP-ViL and T5; else with norms, as for BERT.
        late: whether there is a late layer, on whose input the gate is; else there is none.

    Raises:
        ValueError: fewer than two taps.
    """

    def __init__(
        self, widths: Sequence[int], width: int, out: int, gated: bool = False, late: bool = True
    ) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError("sherl needs at least one shallow tap plus a guide")
        self.down = nn.ModuleList(nn.Linear(channels, width) for channels in widths)
        self.gated = gated
        if gated:
            self.value = nn.ModuleList(nn.Linear(width, width) for _ in widths)
            self.open = nn.ModuleList(nn.Linear(width, width) for _ in widths)
        else:
            self.norm_weight = nn.Parameter(torch.ones(len(widths), width))
            self.norm_bias = nn.Parameter(torch.zeros(len(widths), width))
        self.gate = nn.Linear(width, 1)
        self.up = nn.Linear(width, out)
        self.up_norm = None if gated else nn.LayerNorm(out, eps=1e-12)
        self.gamma = nn.Parameter(torch.zeros(1)) if late else None
        self.beta: Tensor | None = None

    @property
    def dead_tokens(self) -> float:
        """Share of tokens in the last run to which no shallow tap was relevant; NaN before any.

        Such a token gets the guide alone, and no gradient reaches the merge through it.
        """
        return float("nan") if self.beta is None else float((self.beta.sum(-1) == 0).float().mean())

    def forward(self, taps: Sequence[Tensor], hidden: Tensor | None = None) -> Tensor:
        """What the late layer is to run on, [B, N, E] in the dtype of the taps.

        Args:
            taps: K of [B, N, D_k].
            hidden: [B, N, E], what it would have run on; None without a late layer.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
        """
        dtype = self.up.weight.dtype
        norm = self.up_norm
        gamma, beta = (None, None) if norm is None else (norm.weight, norm.bias)
        # A new seed each step, out of torch's generator: reproducible where that is.
        drop = self.training and not self.gated
        y, self.beta = ops.sherl_block(
            [tap.to(dtype) for tap in taps],
            self._down(),
            Gate(self.gate.weight[0], self.gate.bias),
            Up(self.up.weight, self.up.bias, "relu", "none", gamma, beta, 1e-12),
            residual=None if hidden is None else hidden.to(dtype),
            res_scale=None if self.gamma is None else torch.tanh(self.gamma / TEMPERATURE),
            eps_l1=1e-6 if self.gated else 1e-8,
            eps_l2=1e-6 if self.gated else 1e-8,
            dropout_p=DROPOUT if drop else 0.0,
            seed=int(torch.randint(2**62, ())) if drop else 0,
        )
        return y.to(taps[0].dtype)

    def _down(self) -> Down | GatedDown:
        weights, biases = weights_and_biases(self.down)
        if not self.gated:
            return Down(weights, biases, self.norm_weight, self.norm_bias, "none", "layer")
        value, open_ = weights_and_biases(self.value), weights_and_biases(self.open)
        return GatedDown(weights, biases, *value, *open_)
