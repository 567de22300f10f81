"""What a fit leaves in its folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyext import environment, scene
from pyext.report import Report
from pyext_plugins.picture import psnr, save_png, save_row, to_bytes
from pyext_plugins.splat_fit.fitting import Fit
from pyext_plugins.splat_fit.scene import as_scene

OUTPUT_NAMES = ("target.png", "fit.png", "strip.png", "splats.ply")


def write_outputs(fit: Fit, folder: Path) -> Report:
    """Write target.png, fit.png, strip.png and splats.ply; return the report on them."""
    target_file, fit_file, strip_file, scene_file = (folder / name for name in OUTPUT_NAMES)
    final = to_bytes(fit.picture())
    seen = {step: picture for step, picture in fit.snapshots.items() if step < fit.step}
    seen[fit.step] = final
    save_png(target_file, to_bytes(fit.target))
    save_png(fit_file, final)
    save_row(strip_file, [seen[step] for step in sorted(seen)])
    scene.save(as_scene(fit.parameters), scene_file)
    return Report(
        title=f"{fit.camera.width} x {fit.camera.height} pixels, "
        f"{fit.settings.gaussians} Gaussians",
        rows=[
            {"step": step, "PSNR (dB)": round(psnr(seen[step] / 255, fit.target), 2)}
            for step in sorted(seen)
        ],
        pictures={
            "target": target_file,
            "fit": fit_file,
            "from start to end": strip_file,
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
