"""Several LoRAs of one base made one: IterIS, and what it is compared with.

`pyext_plugins.iteris.adapters` reads and writes peft's folders.
"""

from pyext.methods import Method

METHOD = Method(
    name="iteris",
    summary="Merge LoRAs into one: layer by layer, on the inputs that the merged model sees.",
    paper="Chen et al. 2025, IterIS: Iterative Inference-Solving Alignment, arXiv 2411.15231",
    ops=("solve",),
    extra="iteris",
    demo="pyext_plugins.iteris.demo.run:demo",
    commands="pyext_plugins.iteris.app:app",
)
