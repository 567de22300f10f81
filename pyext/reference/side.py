"""Fused side networks in plain PyTorch; gradients come from autograd.

What UniPT, SHERL and their kin are made of. Any float dtype, any device; half precision is computed
in float32, and rounded where a layer's result is stored.
"""

from __future__ import annotations

from pyext.interface.side import make_project, make_project_gated
from pyext.interface.side_blocks import make_sherl_block, make_unipt_block
from pyext.interface.side_mixing import make_antired, make_confidence, make_relu_attend
from pyext.interface.side_tail import make_guided_pool, make_maxavg_pool, make_up
from pyext.reference.side_attend import side_confidence, side_relu_attend
from pyext.reference.side_blocks import side_sherl_block, side_unipt_block
from pyext.reference.side_merge import side_antired, side_up
from pyext.reference.side_pool import side_guided_pool, side_maxavg_pool
from pyext.reference.side_project import side_project, side_project_gated

project = make_project(side_project)
project_gated = make_project_gated(side_project_gated)
confidence = make_confidence(side_confidence)
relu_attend = make_relu_attend(side_relu_attend)
antired = make_antired(side_antired)
up = make_up(side_up)
guided_pool = make_guided_pool(side_guided_pool)
maxavg_pool = make_maxavg_pool(side_maxavg_pool)
unipt_block = make_unipt_block(side_unipt_block)
sherl_block = make_sherl_block(side_sherl_block)
