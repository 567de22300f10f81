"""Low-rank edits of rows, mixtures of adapters, and many LoRAs in one batch.

What ReFT (Wu et al. 2024), MRT (Liu et al. 2025), PathWeave (Yu et al. 2024) and multi-LoRA batches
are made of. A result is the same bits on any number of threads.
"""

from __future__ import annotations

import torch

from pyext.interface.lowrank import Orthonormal, make_orthonormalize, make_rows
from pyext.interface.lowrank_lora import Gate, make_noisy_gate
from pyext.ops import _lowrank  # noqa: F401  (registers fake kernels and gradients)
from pyext.ops._lowrank.rows import rows as _rows
from pyext.ops._lowrank.rows import rows_ as _rows_
from pyext.reference.lowrank import lora_expand, lora_shrink, mix

_ops = torch.ops.pyext

rows = make_rows(_rows, _rows_)
orthonormalize = make_orthonormalize(_ops.lowrank_orthonormalize)
noisy_gate = make_noisy_gate(_ops.lowrank_noisy_gate)

__all__ = [
    "Gate",
    "Orthonormal",
    "lora_expand",
    "lora_shrink",
    "mix",
    "noisy_gate",
    "orthonormalize",
    "rows",
]
