"""Draws a point cloud from a camera that circles it."""

from pyext.methods import Method

METHOD = Method(
    name="splat-orbit",
    summary="Draw a point cloud from a camera that circles it.",
    paper="Zwicker et al. 2001, Surface Splatting",
    ops=("splat",),
    extra="gif",
    demo="splat_orbit.demo:demo",
    commands="splat_orbit.app:app",
)
