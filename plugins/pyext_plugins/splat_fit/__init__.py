"""Fits pictures and scenes with 3D Gaussians, through pyext's own rasterizer."""

from pyext.methods import Method

METHOD = Method(
    name="splat-fit",
    summary="Fit pictures and scenes with Gaussians; write files that splat viewers open.",
    paper="Kerbl et al. 2023, 3D Gaussian Splatting for Real-Time Radiance Field Rendering",
    ops=("splat",),
    extra="splat-fit",
    demo="pyext_plugins.splat_fit.demo:demo",
    commands="pyext_plugins.splat_fit.app:app",
)
