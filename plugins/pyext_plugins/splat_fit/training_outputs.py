"""What a training leaves in its folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from pyext import environment
from pyext import scene as scene_files
from pyext.report import Report
from pyext_plugins.picture import psnr, save_row, to_bytes
from pyext_plugins.splat_fit.cameras import render
from pyext_plugins.splat_fit.dataset import Photograph
from pyext_plugins.splat_fit.ssim import ssim
from pyext_plugins.splat_fit.training import Training

OUTPUT_NAMES = ("scene.ply", "views.png")
SHOWN = 4  # photographs in views.png


def write_outputs(training: Training, folder: Path) -> Report:
    """Write scene.ply and views.png; return the report, measured on the held-out photographs."""
    scene_file, views_file = (folder / name for name in OUTPUT_NAMES)
    scene_files.save(training.scene, scene_file)
    write_views(training, folder)
    held_out = [_measure(training, photograph) for photograph in training.dataset.test]
    rows = held_out or [_measure(training, photograph) for photograph in training.dataset.train]
    measured = "held-out" if held_out else "training"
    psnr_mean = fmean(decibels for _, decibels, _ in rows)
    ssim_mean = fmean(similarity for _, _, similarity in rows)
    return Report(
        title=f"{len(rows)} {measured} photographs, {len(training.scene)} Gaussians",
        rows=[
            {"photograph": name, "PSNR (dB)": round(decibels, 2), "SSIM": round(similarity, 4)}
            for name, decibels, similarity in [*rows, ("mean", psnr_mean, ssim_mean)]
        ],
        pictures={"photographs above, the scene below": views_file},
        facts={"psnr": psnr_mean, "ssim": ssim_mean, "measured on": measured} | _facts(training),
    )


def write_views(training: Training, folder: Path) -> None:
    """Write views.png: photographs, held-out ones if there are any, and the scene below each."""
    chosen = training.dataset.test or training.dataset.train
    height = chosen[0].camera.height
    columns = [
        torch.cat([photograph.pixels, to_bytes(picture(training, photograph))])
        for photograph in chosen[:: max(1, len(chosen) // SHOWN)][:SHOWN]
        if photograph.camera.height == height
    ]
    save_row(folder / "views.png", columns)


def picture(training: Training, photograph: Photograph) -> Tensor:
    """The scene now from where the photograph was taken, [H, W, 3]."""
    with torch.no_grad():
        return render(training.scene, photograph.camera, training.dataset.background)[0]


def _measure(training: Training, photograph: Photograph) -> tuple[str, float, float]:
    """Name, PSNR in dB and SSIM."""
    target, found = photograph.colors(), picture(training, photograph).clamp(0, 1)
    return photograph.name, psnr(found, target), float(ssim(found, target))


def _facts(training: Training) -> dict[str, Any]:
    return {
        "settings": asdict(training.settings),
        "photographs": len(training.dataset.train),
        "gaussians": len(training.scene),
        "steps taken": training.step,
        "complete": training.done,
        "seconds": training.seconds,
        "environment": environment.describe(),
    }
