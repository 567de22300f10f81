"""Fused side networks: what UniPT, SHERL and their kin are made of, on CPU and CUDA.

Diao et al. 2024, "UniPT: Universal Parallel Tuning for Transfer Learning with Efficient Parameter
and Memory" and "SHERL: Synthesizing High Accuracy and Efficient Memory for Resource-Limited
Transfer Learning". float32, bfloat16 and float16 are computed and summed in float32, float64 in
float64; a result is the same bits on any number of threads.
"""

from __future__ import annotations

import torch

from pyext.interface.side import Projected, make_project, make_project_gated
from pyext.interface.side_blocks import (
    Down,
    Gate,
    GatedDown,
    Guide,
    Proj,
    SherlOutput,
    UniptOutput,
    Up,
    make_sherl_block,
    make_unipt_block,
)
from pyext.interface.side_mixing import (
    Attended,
    Merged,
    make_antired,
    make_confidence,
    make_relu_attend,
)
from pyext.interface.side_tail import make_guided_pool, make_maxavg_pool, make_up
from pyext.ops import _side  # noqa: F401  (registers fake kernels and gradients)

_ops = torch.ops.pyext

project = make_project(_ops.side_project)
project_gated = make_project_gated(_ops.side_project_gated)
confidence = make_confidence(_ops.side_confidence)
relu_attend = make_relu_attend(_ops.side_relu_attend)
antired = make_antired(_ops.side_antired)
up = make_up(_ops.side_up)
guided_pool = make_guided_pool(_ops.side_guided_pool)
maxavg_pool = make_maxavg_pool(_ops.side_maxavg_pool)
unipt_block = make_unipt_block(_ops.side_unipt_block)
sherl_block = make_sherl_block(_ops.side_sherl_block)

__all__ = [
    "Attended",
    "Down",
    "Gate",
    "GatedDown",
    "Guide",
    "Merged",
    "Proj",
    "Projected",
    "SherlOutput",
    "UniptOutput",
    "Up",
    "antired",
    "confidence",
    "guided_pool",
    "maxavg_pool",
    "project",
    "project_gated",
    "relu_attend",
    "sherl_block",
    "unipt_block",
    "up",
]
