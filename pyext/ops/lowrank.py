"""Low-rank edits of rows, mixtures of adapters, and many LoRAs in one batch.

What ReFT (Wu et al. 2024), MRT (Liu et al. 2025), PathWeave (Yu et al. 2024) and multi-LoRA batches
are made of. A result is the same bits on any number of threads.
"""

from __future__ import annotations

import torch

from pyext.interface.lowrank import Orthonormal, make_mix, make_orthonormalize, make_rows
from pyext.interface.lowrank_lora import (
    Gate,
    make_lora_expand,
    make_lora_shrink,
    make_noisy_gate,
)
from pyext.ops import _lowrank

_ops = torch.ops.pyext

rows = make_rows(_lowrank.rows.rows, _lowrank.rows.rows_)
orthonormalize = make_orthonormalize(_ops.lowrank_orthonormalize)
mix = make_mix(_ops.lowrank_mix, _lowrank.mix.mix_)
noisy_gate = make_noisy_gate(_ops.lowrank_noisy_gate)
lora_shrink = make_lora_shrink(_ops.lowrank_lora_shrink)
lora_expand = make_lora_expand(_ops.lowrank_lora_expand, _lowrank.lora.lora_expand_)

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
