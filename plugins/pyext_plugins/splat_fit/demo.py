"""The demo: a real photograph, at the default settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from matplotlib import cbook

from pyext.report import Claim, Report
from pyext_plugins.splat_fit.fitting import Fit, Settings, run
from pyext_plugins.splat_fit.outputs import write_outputs
from pyext_plugins.splat_fit.picture import load_picture
from pyext_plugins.splat_fit.progress import progress_bar


def demo(output: Path) -> Report:
    """Fit the photograph of Grace Hopper that ships with matplotlib (U.S. Navy, public domain)."""
    photograph = Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    fit = Fit(load_picture(photograph), Settings())
    with progress_bar(fit) as show:
        run(fit, show)
    report = write_outputs(fit, output)
    return replace(
        report,
        title=f"grace_hopper.jpg: {report.title}",
        claims=[
            Claim("PSNR of fit.png against target.png, dB", report.facts["psnr"], ">=", 30),
            Claim("seconds of the fit", fit.seconds, "<=", 90),
        ],
    )
