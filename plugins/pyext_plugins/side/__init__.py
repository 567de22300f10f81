"""Side networks beside frozen backbones: UniPT, SHERL and, as the baseline of both, LST.

`pyext_plugins.side.model` wraps a backbone; `config` says how.
"""

from pyext.methods import Method

UNIPT = Method(
    name="unipt",
    summary="Fine-tune beside a frozen backbone: its hidden states re-mixed by the last of them.",
    paper="Diao et al. 2024, UniPT: Universal Parallel Tuning, arXiv 2308.14316",
    ops=("side",),
    extra="unipt",
    demo="pyext_plugins.side.demo:unipt",
    commands="pyext_plugins.side.app:unipt",
)
SHERL = Method(
    name="sherl",
    summary="Fine-tune beside a frozen backbone, through its last layer alone.",
    paper="Diao et al. 2024, SHERL, arXiv 2407.07523",
    ops=("side",),
    extra="sherl",
    demo="pyext_plugins.side.demo:sherl",
    commands="pyext_plugins.side.app:sherl",
)
LST = Method(
    name="lst",
    summary="Ladder side tuning, the baseline of `unipt` and `sherl`.",
    paper="Sung et al. 2022, LST: Ladder Side-Tuning, arXiv 2206.06522",
    ops=("side",),
    extra="lst",
    commands="pyext_plugins.side.app:lst",
)
