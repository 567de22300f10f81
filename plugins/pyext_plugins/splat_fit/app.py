"""The command line of `splat-fit`."""

from __future__ import annotations

import typer

from pyext_plugins.splat_fit.commands.fit import fit
from pyext_plugins.splat_fit.commands.render import render
from pyext_plugins.splat_fit.commands.scene import scene

app = typer.Typer(no_args_is_help=True)


@app.callback()
def commands() -> None:
    """Fit pictures and scenes with Gaussians, and look at them."""


for command in (fit, scene, render):
    app.command()(command)
