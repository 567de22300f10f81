"""Many LoRAs in one batch: peft's loop over the adapters of a batch in two ops, training included.

`pyext_plugins.multilora.mixed` switches a model over.
"""

from pyext.methods import Method

METHOD = Method(
    name="multilora",
    summary="Batches whose samples have different LoRAs, for inference and for training.",
    paper="Chen et al. 2023, Punica: Multi-Tenant LoRA Serving, arXiv 2310.18547",
    ops=("lowrank",),
    extra="multilora",
    demo="pyext_plugins.multilora.demo:demo",
)
