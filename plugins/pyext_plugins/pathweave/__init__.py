"""PathWeave: a model learns one modality after the other, each on a path of small adapters.

`model.PathWeave` wraps any module, `qformers` names the sites of transformers' Q-Formers, `files`
and `lora` write what was learned, `authors` reads the checkpoints of the authors' code.

Where that code departs from the method it describes, this does not follow:

- in-adapters belong to a pair of a modality and an earlier one; there, one list is trained again by
  each modality, which changes the paths of those before;
- adapters of cross-attention values act on values; there, point clouds add them to used keys;
- nothing earlier is trainable, which is checked; there, some earlier adapters of the projection to
  the language model are, and unused later ones are too;
- the gates' noise follows ``training``; there, an entry of a configuration file;
- modalities are whole names, as many as one likes; there, substrings of four;
- all adapters are applied in one pass, in the type of the layer's output, without waiting for the
  device; there, tokens are sorted and scattered although every adapter reads every token.
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
