"""PathWeave: a model learns one modality after the other, each on a path of small adapters.

`model.PathWeave` wraps any module, `qformers` names the sites of transformers' Q-Formers.
"""

from pyext.methods import Method

METHOD = Method(
    name="pathweave",
    summary="Learn modality after modality through gated adapters; the earlier ones stay intact.",
    paper="Yu et al. 2024, LLMs Can Evolve Continually on Modality, arXiv 2410.20178",
    ops=("lowrank",),
    extra="pathweave",
    demo="pyext_plugins.pathweave.demo.run:demo",
    commands="pyext_plugins.pathweave.app:app",
)
