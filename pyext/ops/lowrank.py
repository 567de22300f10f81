"""Low-rank edits of rows, mixtures of adapters, and many LoRAs in one batch.

What ReFT (Wu et al. 2024), MRT (Liu et al. 2025), PathWeave (Yu et al. 2024) and multi-LoRA batches
are made of. A result is the same bits on any number of threads.
"""

from __future__ import annotations

from pyext.interface.lowrank import Orthonormal
from pyext.interface.lowrank_lora import Gate
from pyext.reference.lowrank import (
    lora_expand,
    lora_shrink,
    mix,
    noisy_gate,
    orthonormalize,
    rows,
)

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
