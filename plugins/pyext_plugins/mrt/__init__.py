"""MRT: a LLaVA model tuned by small edits of its vision blocks, projector and question tokens.

`config` says how, `model.MrtEditor` puts the editors into the model, `projector` folds one of them
into its weights, `author_files` reads the authors' files; the editors are those of `reft`.
"""

from pyext.methods import Method

METHOD = Method(
    name="mrt",
    summary="Tune an image-and-text model by low-rank edits of its hidden states.",
    paper="Liu et al. 2025, Re-Imagining Multimodal Instruction Tuning, arXiv 2503.00723",
    ops=("lowrank",),
    extra="mrt",
    demo="pyext_plugins.mrt.demo:demo",
    commands="pyext_plugins.mrt.app:app",
)
