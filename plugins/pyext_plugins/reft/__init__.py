"""ReFT: small low-rank edits of hidden states, at a few tokens, instead of trained weights.

`config` says how, `model.Editor` puts the editors into a transformers model, `files` and `pyreft`
read and write them, `steering` sets chosen tokens to chosen contents.
"""

from pyext.methods import Method

METHOD = Method(
    name="reft",
    summary="Fine-tune by low-rank edits of hidden states at the first and last tokens.",
    paper="Wu et al. 2024, ReFT: Representation Finetuning, arXiv 2404.03592",
    ops=("lowrank",),
    extra="reft",
)
