"""The Gaussians of a scene, by gsplat's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SH_C0 = 0.28209479177387814  # the constant spherical harmonic: colour = 0.5 + SH_C0 * sh0
DEGREES = {(degree + 1) ** 2: degree for degree in range(5)}  # by number of coefficients K


@dataclass(frozen=True, eq=False)
class Scene:
    """N Gaussians with K = (degree + 1)^2 spherical-harmonics coefficients of colour each.

    Values are those that files hold and optimizers move: before exp, sigmoid and normalisation.

    Args:
        means: centres, [N, 3].
        scales: logarithms of the standard deviations along the axes, [N, 3].
        quats: rotations (w, x, y, z) of any length, [N, 4].
        opacities: logits, [N].
        sh0: constant colour coefficients, [N, 1, 3].
        shN: the other coefficients, [N, K - 1, 3]; K - 1 is 0, 3, 8, 15 or 24.

    Raises:
        ValueError: a shape is wrong.
    """

    means: Tensor
    scales: Tensor
    quats: Tensor
    opacities: Tensor
    sh0: Tensor
    shN: Tensor

    def __post_init__(self) -> None:
        n = len(self.means)
        others = self.shN.shape[1] if self.shN.dim() == 3 else 0
        if others + 1 not in DEGREES:
            raise ValueError(f"shN: expected 0, 3, 8, 15 or 24 coefficients, got {others}")
        wanted = {
            "means": (n, 3),
            "scales": (n, 3),
            "quats": (n, 4),
            "opacities": (n,),
            "sh0": (n, 1, 3),
            "shN": (n, others, 3),
        }
        for name, shape in wanted.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"{name}: expected shape {list(shape)}, got {list(found)}")

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        """Of the spherical harmonics of the colour, 0 to 4."""
        return DEGREES[self.shN.shape[1] + 1]

    def arguments(self) -> dict[str, Any]:
        """What `rasterization` takes of a scene, activated; gradients flow through.

        Returns:
            means, quats, scales, opacities, colors (coefficients, [N, K, 3]) and sh_degree.
        """
        return {
            "means": self.means,
            "quats": self.quats,
            "scales": self.scales.exp(),
            "opacities": self.opacities.sigmoid(),
            "colors": torch.cat([self.sh0, self.shN], 1),
            "sh_degree": self.sh_degree,
        }
