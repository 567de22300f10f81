"""Diff-II: more training images by denoising points on circles through inverted images.

`schedule`, `inversion`, `circles` and `generation` are the method, `pixels` and `stable_diffusion`
the models it runs on, `dataset` puts the results before a classifier.
"""

from pyext.methods import Method

METHOD = Method(
    name="diffii",
    summary="More images of a class by denoising points on circles through inverted images.",
    paper="Wang and Chen 2025, Inversion Circle Interpolation (Diff-II), arXiv 2408.16266",
    ops=("circle",),
    extra="diffii",
    demo="pyext_plugins.diffii.demo:demo",
    commands="pyext_plugins.diffii.app:app",
)
