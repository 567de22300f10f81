"""Streaming Gram matrices and small solves: the linear algebra of merging by least squares.

Chen et al. 2025, "IterIS: Iterative Inference-Solving Alignment for LoRA Merging" (arXiv
2411.15231), and RegMean (arXiv 2212.09849), in the exact low-rank form: the solution is a product
of the adapters' B matrices and R right-hand sides. Sums are made in float64; a result is the same
bits on any number of threads. There are no gradients.
"""

from __future__ import annotations

import torch

from pyext.interface.solve import (
    FLOAT32_GRAM,
    DualSolved,
    FactoredSvd,
    Solved,
    Truncated,
    make_cross_acc_,
    make_dual_solve,
    make_factored_svd,
    make_gram_acc_,
    make_gram_combine,
    make_gram_proj_acc_,
    make_spd_solve,
    make_sumsq_acc_,
    make_sym_fro_norm,
    make_truncate_dense,
)
from pyext.ops import _solve  # noqa: F401  (registers fake kernels and composed ops)

_ops = torch.ops.pyext

gram_acc_ = make_gram_acc_(_ops.solve_gram_acc_)
gram_proj_acc_ = make_gram_proj_acc_(_ops.solve_gram_proj_acc_)
cross_acc_ = make_cross_acc_(_ops.solve_cross_acc_)
sumsq_acc_ = make_sumsq_acc_(_ops.solve_sumsq_acc_)
gram_combine = make_gram_combine(_ops.solve_gram_combine)
sym_fro_norm = make_sym_fro_norm(_ops.solve_sym_fro_norm)
spd_solve = make_spd_solve(_ops.solve_spd_solve, _ops.solve_spd_solve_)
dual_solve = make_dual_solve(_ops.solve_dual_solve)
factored_svd = make_factored_svd(_ops.solve_factored_svd)
truncate_dense = make_truncate_dense(_ops.solve_truncate_dense)

__all__ = [
    "FLOAT32_GRAM",
    "DualSolved",
    "FactoredSvd",
    "Solved",
    "Truncated",
    "cross_acc_",
    "dual_solve",
    "factored_svd",
    "gram_acc_",
    "gram_combine",
    "gram_proj_acc_",
    "spd_solve",
    "sumsq_acc_",
    "sym_fro_norm",
    "truncate_dense",
]
