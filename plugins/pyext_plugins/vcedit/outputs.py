"""What an edit leaves in its folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from pyext import environment
from pyext.errors import UserError
from pyext.report import Report
from pyext.scene import save
from pyext_plugins.picture import psnr, save_png, save_row, to_bytes
from pyext_plugins.vcedit.editing import Edit
from pyext_plugins.vcedit.fitting import render

SCENE, OVERVIEW, REPORT = "edited.ply", "overview.png", "report.json"
SHOWN = 4  # views in the overview


def refuse_files_of_others(folder: Path) -> None:
    """Raises UserError where results would overwrite something."""
    for name in (SCENE, OVERVIEW, REPORT, "guidance", "renders"):
        if (folder / name).exists():
            raise UserError(f"--output: {folder} already holds {name}; choose another folder")


def write_outputs(edit: Edit, before: Tensor, folder: Path) -> Report:
    """Write the scene, its renders and the edited views; return the report on them.

    Args:
        edit: done or interrupted.
        before: renders of the scene as it was, [V, H, W, 3].
        folder: exists.
    """
    with torch.no_grad():
        after = render(edit.scene, edit.cameras).clamp(0, 1)
    save(edit.scene, folder / SCENE)
    _save_views(folder / "renders", after)
    shown = [before, after]
    if edit.guidance is not None:
        _save_views(folder / "guidance", edit.guidance)
        shown.insert(1, edit.guidance)
    columns = [torch.cat([row[view] for row in shown]) for view in range(min(len(before), SHOWN))]
    save_row(folder / OVERVIEW, [to_bytes(column) for column in columns])
    report = Report(
        title=f"{len(edit.scene)} Gaussians, {len(edit.cameras)} views",
        rows=[
            {
                "view": view,
                "PSNR to the guidance (dB)": None
                if edit.guidance is None
                else round(psnr(after[view], edit.guidance[view]), 2),
                "PSNR to the view before (dB)": round(psnr(after[view], before[view]), 2),
            }
            for view in range(len(before))
        ],
        pictures={"before, guidance, after": folder / OVERVIEW},
        facts={
            "settings": asdict(edit.settings),
            "rounds done": edit.round,
            "complete": edit.done,
            "mind": "where an editor's last step is made consistent, its pictures are renders: "
            "PSNR to the guidance then says nothing about the edit",
            "environment": environment.describe(),
        },
    )
    report.save(folder / REPORT)
    return report


def _save_views(folder: Path, pictures: Tensor) -> None:
    folder.mkdir(exist_ok=True)
    for view, picture in enumerate(pictures):
        save_png(folder / f"{view:04d}.png", to_bytes(picture))
