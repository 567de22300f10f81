"""What a fit leaves in its folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyext import environment
from pyext.report import Report
from pyext_plugins.splat_fit.fitting import Fit
from pyext_plugins.splat_fit.picture import psnr, save_png, save_row, to_bytes
from pyext_plugins.splat_fit.ply import write_ply


def write_outputs(fit: Fit, folder: Path) -> Report:
    """Write target.png, fit.png, strip.png and splats.ply; return the report on them."""
    final = to_bytes(fit.picture())
    seen = {step: picture for step, picture in fit.snapshots.items() if step < fit.step}
    seen[fit.step] = final
    save_png(folder / "target.png", to_bytes(fit.target))
    save_png(folder / "fit.png", final)
    save_row(folder / "strip.png", [seen[step] for step in sorted(seen)])
    write_ply(folder / "splats.ply", fit.parameters)
    return Report(
        title=f"{fit.camera.width} x {fit.camera.height} pixels, "
        f"{fit.settings.gaussians} Gaussians",
        rows=[
            {"step": step, "PSNR (dB)": round(psnr(seen[step] / 255, fit.target), 2)}
            for step in sorted(seen)
        ],
        pictures={
            "target": folder / "target.png",
            "fit": folder / "fit.png",
            "from start to end": folder / "strip.png",
        },
        facts=_facts(fit),
    )


def _facts(fit: Fit) -> dict[str, Any]:
    return {
        "settings": asdict(fit.settings),
        "steps taken": fit.step,
        "complete": fit.done,
        "interrupted at step": None if fit.done else fit.step,
        "psnr": fit.psnr(),
        "seconds": fit.seconds,
        "environment": environment.describe(),
    }
