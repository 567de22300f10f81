"""UniPT's side network: taps in, adapted features out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyext.interface.side_blocks import Down, Gate, Guide, Proj, Up
from pyext.ops import side as ops
from pyext_plugins.side.parameters import weights_and_biases

COSTLY = 1e11  # operations of the attention of one sample, above which a warning is given


@dataclass(frozen=True)
class Recipe:
    """Where the authors' variants differ, in the words of `ops.unipt_block`."""

    pre_act: str = "none"
    norm: str = "layer"
    proj: int = 1  # matrices of Proj
    up_pre_act: str = "relu"
    rho: float = 1.0
    eps: float = 1e-8
    eps_mode: str = "add"
    init_std: float | None = None  # of normal weights; None for PyTorch's defaults


RECIPES = {
    "bert_seq": Recipe(),
    "joint_vl": Recipe(proj=2, up_pre_act="none", eps=1e-6, init_std=0.02),
    # The summary token guides all taps, is what each gets as its base, and the residual.
    "clip_token": Recipe("relu", "none", proj=0, rho=0.0, eps=1e-6, eps_mode="clamp"),
}


class UniptSide(nn.Module):
    """The side network of one preset.

    Args:
        widths: channels of the K taps; the last of them guides the others, unless there is a guide.
        width: d, of the side network.
        out: E, channels of the result; also the inner width of a Proj of two matrices.
        preset: a name in `RECIPES`.
        guide_width: channels of a guide of its own, which "clip_token" needs; else None.

    `alpha`, [B, K'], are the weights the taps had in the last run.
    """

    def __init__(
        self,
        widths: Sequence[int],
        width: int,
        out: int,
        preset: str = "bert_seq",
        guide_width: int | None = None,
    ) -> None:
        super().__init__()
        recipe = RECIPES[preset]
        self.recipe = recipe
        self.down = nn.ModuleList(nn.Linear(channels, width) for channels in widths)
        if recipe.norm == "layer":
            self.norm_weight = nn.Parameter(torch.ones(len(widths), width))
            self.norm_bias = nn.Parameter(torch.zeros(len(widths), width))
        self.guide = None if guide_width is None else nn.Linear(guide_width, width)
        self.gate = nn.Linear(width, 1)
        inner = [width, out, width] if recipe.proj == 2 else [width] * (recipe.proj + 1)
        self.proj = nn.ModuleList(map(nn.Linear, inner[:-1], inner[1:]))
        self.proj_norm = nn.LayerNorm(width) if recipe.proj else None
        self.up = nn.Linear(width, out)
        self.alpha: Tensor | None = None
        if recipe.init_std is not None:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=recipe.init_std)
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        taps: Sequence[Tensor],
        mask: Tensor | None = None,
        guide: Tensor | None = None,
        position: Tensor | None = None,
    ) -> Tensor:
        """The adapted features [B, N, E]; with a guide [B, E0] those of its token, [B, 1, E].

        Args:
            taps: K of [B, N, D_k].
            mask: [B, N] bool, True where a token counts.
            guide, position: the summary token's feature and its place in the taps, [B] int64.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
        """
        recipe, dtype = self.recipe, self.up.weight.dtype
        taps = [tap.to(dtype) for tap in taps]
        self._warn_if_costly(taps[0])
        a, c = (self.norm_weight, self.norm_bias) if recipe.norm == "layer" else (None, None)
        weights, biases = weights_and_biases(self.down)
        own, residual = None, None
        if self.guide is not None:
            if guide is None:
                raise ValueError("guide: expected the summary token's feature, got none")
            residual = guide.to(dtype).unsqueeze(1)
            own = Guide(residual, self.guide.weight, self.guide.bias)
        proj = None
        if self.proj_norm is not None:
            norm = self.proj_norm
            proj = Proj(*weights_and_biases(self.proj), norm.weight, norm.bias, norm.eps)
        y, self.alpha = ops.unipt_block(
            taps,
            Down(weights, biases, a, c, recipe.pre_act, recipe.norm),
            Gate(self.gate.weight[0], self.gate.bias),
            proj,
            Up(self.up.weight, self.up.bias, recipe.up_pre_act),
            guide=own,
            residual=residual,
            mask=mask,
            rho=recipe.rho,
            base_index=None if own is None else position,
            eps=recipe.eps,
            eps_mode=recipe.eps_mode,
        )
        return y

    def _warn_if_costly(self, tap: Tensor) -> None:
        rows = tap.shape[1] if self.guide is None else 1
        taps = len(self.down) - (self.guide is None)
        cost = 4 * taps * rows * tap.shape[1] * self.gate.in_features
        if cost > COSTLY:
            warnings.warn(
                f"unipt: attention between {tap.shape[1]} tokens takes {cost:.1e} operations a "
                "sample; fewer taps or a larger reduction make it cheaper",
                stacklevel=3,
            )
