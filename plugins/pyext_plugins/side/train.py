"""The work of the command `train`."""

from __future__ import annotations

from pathlib import Path

from pyext.errors import UserError
from pyext.files import make_output_folder
from pyext.show import show_rows
from pyext_plugins.progress import interruptible
from pyext_plugins.session import (
    REPORT,
    exit_interrupted,
    one_line_if_unwritable,
    refuse_files_of_others,
)
from pyext_plugins.side.arms import COMPARED
from pyext_plugins.side.config import CONFIGS
from pyext_plugins.side.files import CONFIG, WEIGHTS
from pyext_plugins.side.study import Study
from pyext_plugins.side.table import read_table
from pyext_plugins.side.training import Settings


def run(
    method: str,
    model: Path,
    data: Path,
    columns: tuple[str, str],
    output: Path,
    settings: Settings,
    reduction: int,
    compare: bool = False,
    cache: Path | None = None,
) -> None:
    """Train a side network on the texts of a CSV file, and what it is compared with.

    Raises:
        UserError: bad input.
        typer.Exit: with code 130, after Ctrl-C.
    """
    try:
        config = CONFIGS[method](reduction=reduction)
    except ValueError as error:
        raise UserError(f"--{error}") from error
    study = Study(model, read_table(data, *columns), config, settings)
    make_output_folder(output)
    refuse_files_of_others(output, (WEIGHTS, CONFIG))
    with interruptible() as stopped, one_line_if_unwritable(output):
        for arm in (method, *(COMPARED if compare else ())):
            folder = output if arm == method else output / "compared" / arm
            training = study.run(arm, folder, cache, stopped)
            if not training.done:
                exit_interrupted(training.step)
        report = study.report()
        report.save(output / REPORT)
    show_rows(report.rows, title=report.title)
    print(f"memory: {report.facts['memory']}")
    print(f"{output / WEIGHTS}: {method}, trained beside {model}")
