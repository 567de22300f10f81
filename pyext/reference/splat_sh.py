"""Colours from real spherical harmonics in plain PyTorch; gradients come from autograd."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DEGREE_MAX = 4


def sh_bases(degree: int, dirs: Tensor) -> Tensor:
    """The real spherical harmonics of all degrees up to ``degree``, at unit directions.

    With x + iy = sin(theta) exp(i phi) and z = cos(theta), the basis number l^2 + l + m of degree
    l and order -l <= m <= l is (-1)^m times the orthonormal harmonic, whose factor in phi is
    cos(m phi) for m >= 0 and sin(|m| phi) for m < 0: the order and signs of Kerbl et al. 2023.

    Args:
        degree: 0 to 4.
        dirs: unit vectors, [..., 3].

    Returns:
        [..., (degree + 1)^2].
    """
    x, y, z = dirs.unbind(-1)
    one = torch.ones_like(z)
    # Derivatives of the Legendre polynomials, by degree l and order m.
    heights = [
        [one],
        [z, one],
        [(3 * z**2 - 1) / 2, 3 * z, 3 * one],
        [(5 * z**3 - 3 * z) / 2, (15 * z**2 - 3) / 2, 15 * z, 15 * one],
        [(35 * z**4 - 30 * z**2 + 3) / 8, (35 * z**3 - 15 * z) / 2, (105 * z**2 - 15) / 2,
         105 * z, 105 * one],
    ]  # fmt: skip
    around = [(one, torch.zeros_like(one)), (x, y)]  # real and imaginary part of (x + iy)^m
    around += [(x * x - y * y, 2 * x * y), (x**3 - 3 * x * y * y, 3 * x * x * y - y**3)]
    around += [(x**4 - 6 * x * x * y * y + y**4, 4 * x * y * (x * x - y * y))]
    bases = []
    for l in range(degree + 1):  # noqa: E741  (the degree's usual letter)
        for m in range(-l, l + 1):
            order = abs(m)
            ratio = math.factorial(l - order) / math.factorial(l + order)
            norm = math.sqrt((2 * l + 1) / (4 * math.pi) * ratio * (2 if m else 1))
            real, imaginary = around[order]
            turn = real if m >= 0 else imaginary
            bases.append((-1) ** order * norm * heights[l][order] * turn)
    return torch.stack(bases, -1)


def spherical_harmonics(degree: int, dirs: Tensor, coeffs: Tensor) -> Tensor:
    """Sums of spherical harmonics: sum_k B_k(dirs / |dirs|) coeffs_k.

    Args:
        degree: 0 to 4.
        dirs: of any length, [..., 3]; one of length zero is taken as (0, 0, 0), gradient zero.
        coeffs: [..., K, D] with K >= (degree + 1)^2, those beyond unused; broadcasts with ``dirs``.

    Returns:
        [..., D].
    """
    squared = dirs.square().sum(-1, keepdim=True)
    length = torch.where(squared > 0, squared, 1).sqrt()
    bases = sh_bases(degree, torch.where(squared > 0, dirs / length, 0))
    return (bases[..., None] * coeffs[..., : bases.shape[-1], :]).sum(-2)


def sh(degree: int, means: Tensor, centres: Tensor, coeffs: Tensor, radii: Tensor | None) -> Tensor:
    """Colours [B, C, N, D] of Gaussians [B, N, 3] seen from [B, C, 3], 0 where radii are not > 0.

    ``coeffs`` are [B, 1 or C, N, K, D]. The signature is that of ``pyext::splat_sh``.
    """
    dirs = means[:, None] - centres[:, :, None]
    if radii is None:
        return spherical_harmonics(degree, dirs, coeffs)
    visible = (radii > 0).all(-1, keepdim=True)
    colours = spherical_harmonics(degree, torch.where(visible, dirs, 0), coeffs)
    return torch.where(visible, colours, 0)
