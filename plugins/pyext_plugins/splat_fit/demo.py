"""The demo: a real photograph, at the default settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from matplotlib import cbook

from pyext.report import Claim, Report
from pyext_plugins.picture import load_picture, save_row, to_bytes
from pyext_plugins.progress import progress_bar
from pyext_plugins.splat_fit.fitting import Fit, Settings, run
from pyext_plugins.splat_fit.outputs import write_outputs
from pyext_plugins.splat_fit.scene import render

SHRINK = 0.35  # of the Gaussians' sizes, where they are shown one by one


def demo(output: Path) -> Report:
    """Fit the photograph of Grace Hopper that ships with matplotlib (U.S. Navy, public domain).

    Besides what every fit leaves, writes demo.png: the photograph, the fit, and its Gaussians.
    """
    photograph = Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    fit = Fit(load_picture(photograph), Settings())
    with progress_bar("fitting", fit.settings.steps, figure=fit.psnr()) as show:
        run(fit, lambda psnr: show(fit.step, psnr))
    report = write_outputs(fit, output)
    with torch.no_grad():
        apart = render(fit.parameters, fit.camera, shrink=SHRINK)
    save_row(output / "demo.png", [to_bytes(part) for part in (fit.target, fit.picture(), apart)])
    return replace(
        report,
        title=f"grace_hopper.jpg: {report.title}",
        pictures={
            **report.pictures,
            "target, fit, and the Gaussians shrunken": output / "demo.png",
        },
        claims=[
            Claim("PSNR of fit.png against target.png, dB", report.facts["psnr"], ">=", 30),
            Claim("seconds of the fit", fit.seconds, "<=", 90),
        ],
    )
