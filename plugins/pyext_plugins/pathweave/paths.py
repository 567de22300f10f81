"""One linear layer with a path for each modality: adapters, in-adapters and gates.

For the modality m, with E adapters e = 1..m on its path (Yu et al. 2024)::

    u_e = A_e x + a_e,  v_e = F_e u_e + f_e for e < m,  v_m = u_m
    y = linear(x) + sum_e g_e s_e (B_e^T v_e + c_e)
    g = softmax(x Wg + eps (softplus(x Wn) + 0.01)),  eps ~ N(0, 1) in training and 0 otherwise

A modality without earlier adapters on its path has no gate.

Other than in the authors' code, in-adapters F, f belong to one pair of a modality and an earlier
one. There, one list serves all modalities and is trained by each, which changes the paths of those
before. And noise follows ``training``, where theirs follows an entry in a configuration file.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyext.ops import lowrank
from pyext_plugins.pathweave.noise import Noise

Gate = Literal["noisy", "soft", "none"]
GATES: tuple[str, ...] = get_args(Gate)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Of adapters beside weights of this type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Adapter(nn.Module):
    """``scale (B^T (A x + a) + c)``, zero at first.

    Args:
        linear: beside which layer, Din to Do.
        rank: r. A is [r, Din], B [r, Do].
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        place: dict[str, Any] = {
            "dtype": _wide(linear.weight.dtype),
            "device": linear.weight.device,
        }
        self.A = nn.Parameter(torch.empty(rank, linear.in_features, **place))
        self.a = nn.Parameter(torch.zeros(rank, **place))
        self.B = nn.Parameter(torch.zeros(rank, linear.out_features, **place))
        self.c = nn.Parameter(torch.zeros(linear.out_features, **place))
        self.scale = nn.Parameter(torch.ones((), **place))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    @property
    def rank(self) -> int:
        return len(self.A)

    @property
    def frozen(self) -> bool:
        own = (self.A, self.a, self.B, self.c, self.scale)
        return not any(parameter.requires_grad for parameter in own)


class Stage(nn.Module):
    """What one modality adds to a linear layer.

    Args:
        linear: the layer.
        rank: of its own adapter.
        earlier: adapters that it uses besides, in order; they are not part of this module.
        gate: "noisy", "soft" (without noise) or "none" (the plain sum).
        inner: whether earlier adapters are reached through in-adapters.
    """

    def __init__(
        self,
        linear: nn.Linear,
        rank: int,
        earlier: Sequence[Adapter],
        gate: Gate,
        inner: bool,
    ) -> None:
        super().__init__()
        self.own = Adapter(linear, rank)
        place: dict[str, Any] = {"dtype": self.own.A.dtype, "device": self.own.A.device}
        self.inner = nn.ModuleList(
            nn.Linear(adapter.rank, adapter.rank, **place) for adapter in (earlier if inner else ())
        )
        shape = (linear.in_features, len(earlier) + 1)
        self.Wg = self.Wn = None
        if earlier and gate != "none":
            self.Wg = nn.Parameter(torch.zeros(shape, **place))
        if earlier and gate == "noisy":
            self.Wn = nn.Parameter(torch.zeros(shape, **place))
        # A list in a list, so that torch does not count the earlier adapters as part of this.
        self._earlier = [list(earlier)]

    @property
    def adapters(self) -> list[Adapter]:
        """All on the path, its own last."""
        return [*self._earlier[0], self.own]


class PathLinear(nn.Module):
    """A frozen linear layer, and the path that is set.

    Args:
        linear: is kept as it is; the caller freezes it.
        noise: for the gates.
        plain: adapters are summed without gates and in-adapters, whatever a modality asks for.
        cross_key: this makes the keys of a cross-attention.
    """

    def __init__(
        self, linear: nn.Linear, noise: Noise, plain: bool = False, cross_key: bool = False
    ) -> None:
        super().__init__()
        self.linear = linear
        self.stages = nn.ModuleList()
        self.active: int | None = None
        self.noise, self.plain, self.cross_key = noise, plain, cross_key

    @property
    def weight(self) -> Tensor:
        """The layer's, for code that asks a linear layer for its type or device."""
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    def add(self, rank: int, gate: Gate, reuse: bool) -> Stage:
        """The stage of one more modality."""
        earlier = [cast(Stage, stage).own for stage in self.stages] if reuse else []
        stage = Stage(self.linear, rank, earlier, "none" if self.plain else gate, not self.plain)
        self.stages.append(stage)
        return stage

    def forward(self, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """The layer's output plus that of the adapters on the path.

        Args:
            x: [..., Din].
            eps: [..., E] float32, the noise of the gate; by default drawn, in training only.

        Returns:
            y [..., Do], of the type that the layer gives.
        """
        base: Tensor = self.linear(x)
        if self.active is None:
            return base
        if self.cross_key and x.shape[-2] == 1:
            warnings.warn(
                "a cross-attention sees a single key token: its softmax is 1, and adapters of its "
                "queries and keys have no effect and learn nothing",
                stacklevel=2,
            )
        stage = cast(Stage, self.stages[self.active])
        # Autocast would compute logits in half precision, where they overflow.
        with torch.autocast(x.device.type, enabled=False):
            gate = None if stage.Wg is None else self._gate(stage, x, eps)
            # A hook may have kept what the layer gave; else nobody has seen it.
            inplace = not self.linear._forward_hooks
            return _mix(stage, x.to(base.dtype), base, gate, inplace)

    def _gate(self, stage: Stage, x: Tensor, eps: Tensor | None) -> Tensor:
        Wg, Wn = cast(Tensor, stage.Wg), stage.Wn
        if Wn is None or (eps is None and not self.training):
            return lowrank.noisy_gate(x, Wg).gate
        if eps is None:
            eps = self.noise.draw((*x.shape[:-1], Wg.shape[1]), _wide(x.dtype), x.device)
        return lowrank.noisy_gate(x, Wg, Wn, eps).gate


def _mix(stage: Stage, x: Tensor, base: Tensor, gate: Tensor | None, inplace: bool) -> Tensor:
    """base plus the adapters of a stage, written into base or not."""
    adapters = stage.adapters
    ranks = [adapter.rank for adapter in adapters]
    most = max(ranks)
    M, m = _inner(stage, most)
    return lowrank.mix(
        x,
        torch.stack([_filled(adapter.A, most) for adapter in adapters]),
        torch.stack([_filled(adapter.B, most) for adapter in adapters]),
        base,
        a=torch.stack([_filled(adapter.a, most) for adapter in adapters]),
        c=torch.stack([adapter.c for adapter in adapters]),
        M=M,
        m=m,
        has_inner=None if M is None else [*[True] * len(stage.inner), False],
        scale=torch.stack([adapter.scale for adapter in adapters]).to(_wide(x.dtype)),
        gate=gate,
        ranks=ranks,
        frozen=[adapter.frozen for adapter in adapters],
        inplace=inplace,
    )


def _inner(stage: Stage, most: int) -> tuple[Tensor | None, Tensor | None]:
    """The in-adapters [E, r, r] and [E, r], zeros in the place of the own adapter."""
    if not len(stage.inner):
        return None, None
    layers = [cast(nn.Linear, layer) for layer in stage.inner]
    weights = [F.pad(layer.weight, (0, most - layer.in_features)) for layer in layers]
    M = torch.stack([_filled(weight, most) for weight in weights])
    m = torch.stack([_filled(layer.bias, most) for layer in layers])
    return F.pad(M, (0, 0, 0, 0, 0, 1)), F.pad(m, (0, 0, 0, 1))


def _filled(tensor: Tensor, rows: int) -> Tensor:
    """Zeros appended, up to so many rows."""
    lacking = rows - len(tensor)
    return F.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, lacking)) if lacking else tensor
