"""What a fit leaves in its folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from pyext import environment
from pyext.report import Report
from pyext_plugins.splat_fit.fitting import Fit
from pyext_plugins.splat_fit.picture import psnr, save_png, to_bytes
from pyext_plugins.splat_fit.ply import write_ply
from pyext_plugins.splat_fit.scene import render

SHRINK = 0.35  # of the Gaussians, where they are shown one by one


def write_outputs(fit: Fit, folder: Path) -> Report:
    """Write pictures and the scene; return the report that belongs to them."""
    final = to_bytes(fit.picture())
    with torch.no_grad():
        apart = to_bytes(render(fit.parameters, fit.camera, shrink=SHRINK))
    target = to_bytes(fit.target)
    snapshots = {step: picture for step, picture in fit.snapshots.items() if step < fit.step}
    snapshots[fit.step] = final
    save_png(folder / "target.png", target)
    save_png(folder / "fit.png", final)
    save_png(folder / "strip.png", *(snapshots[step] for step in sorted(snapshots)))
    save_png(folder / "gaussians.png", target, final, apart)
    write_ply(folder / "splats.ply", fit.parameters)
    rows = [
        {"step": step, "PSNR (dB)": round(psnr(snapshots[step] / 255, fit.target), 2)}
        for step in sorted(snapshots)
    ]
    return Report(
        title=f"{fit.camera.width} x {fit.camera.height} pixels, "
        f"{fit.settings.gaussians} Gaussians",
        rows=[dict(row) for row in rows],
        pictures={
            "target": folder / "target.png",
            "fit": folder / "fit.png",
            "from start to end": folder / "strip.png",
            "target, fit, and the Gaussians apart": folder / "gaussians.png",
        },
        facts={
            "settings": asdict(fit.settings),
            "steps taken": fit.step,
            "complete": fit.done,
            "psnr": fit.psnr(),
            "seconds": fit.seconds,
            "environment": environment.describe(),
        },
    )
