"""The work of the commands."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from pyext import environment
from pyext.errors import UserError
from pyext.files import make_output_folder
from pyext.report import Report, Value
from pyext.show import show_rows
from pyext_plugins.data.sums import sha256_of
from pyext_plugins.memory import RESIDENT, SAVED
from pyext_plugins.pathweave.features import Batch, Features, make_batches
from pyext_plugins.pathweave.files import CONFIG, WEIGHTS, base_digest
from pyext_plugins.pathweave.loading import load_base
from pyext_plugins.pathweave.reader import PIECES, Reader, Sizes, load_reader
from pyext_plugins.pathweave.training import Settings, Training
from pyext_plugins.progress import interruptible
from pyext_plugins.session import (
    REPORT,
    exit_interrupted,
    go_on,
    one_line_if_unwritable,
    refuse_files_of_others,
)
from pyext_plugins.side.training import Score, evaluate

MIB = 2**20
LOSS = "loss {:.3f}"
QUERIES = 32  # of a Q-Former that comes without


def run(
    model: Path,
    modality: str,
    features: Path,
    previous: Path | None,
    output: Path,
    settings: Settings,
) -> None:
    """Train one modality, on top of those that an earlier training left.

    Raises:
        UserError: bad input.
        typer.Exit: with code 130, after Ctrl-C.
    """
    if previous is not None and previous.resolve() == output.resolve():
        raise UserError(f"--from: expected another folder than --output, got {previous}")
    data = Features(features)
    reader = _begin(model, modality, previous, data, settings)
    trained_on, held_out = data.split(settings.holdout, settings.seed)
    identity = {
        "data": data.sha256,
        "modalities": ", ".join(reader.names),
        "previous": "none" if previous is None else _sum_of(previous),
        "model": base_digest(reader.paths),
    }
    batches = make_batches(data, trained_on, settings.batch, settings.seed)
    training = Training(modality, reader, batches, settings, identity)
    make_output_folder(output)
    refuse_files_of_others(output, (WEIGHTS, CONFIG, PIECES))
    with interruptible() as stopped, one_line_if_unwritable(output):
        go_on(training, training.steps, output, stopped, label=modality, form=LOSS)
        if not training.done:
            exit_interrupted(training.step)
        reader.save(output)
        score = _evaluate(reader, make_batches(data, held_out, settings.batch))
        report = _report(training, reader, score, len(held_out))
        report.save(output / REPORT)
    show_rows(report.rows, title=report.title)
    print(f"memory: {report.facts['memory']}")
    print(f"{output / WEIGHTS}: {', '.join(reader.names)}")


def _begin(
    model: Path, modality: str, previous: Path | None, data: Features, settings: Settings
) -> Reader:
    """The reader with all earlier modalities, and the new one begun."""
    base = load_base(model)
    base.qformer.to("cuda" if torch.cuda.is_available() else "cpu")
    reader = Reader(base)
    if previous is not None:
        reader.load(previous)
    own = QUERIES if base.queries is None else base.queries.shape[1]
    sizes = Sizes(data.width, settings.queries or own, data.classes)
    torch.manual_seed(settings.seed)
    try:
        reader.add_modality(modality, settings.rank, settings.gate, settings.reuse, sizes)
    except ValueError as error:
        # The argument `name` is the option --modality.
        raise UserError("--" + re.sub("^name:", "modality:", str(error))) from error
    return reader


def _sum_of(folder: Path) -> str:
    return " ".join(sha256_of(folder / name) for name in (WEIGHTS, PIECES))


def _evaluate(reader: Reader, batches: Sequence[Batch]) -> Score:
    return evaluate(cast(Any, reader), cast(Any, batches))


def _report(training: Training, reader: Reader, score: Score, held_out: int) -> Report:
    memory = training.measure()
    trained = sum(parameter.numel() for parameter in training.parameters.values())
    total = sum(parameter.numel() for parameter in reader.parameters())
    row: dict[str, Value] = {
        "modality": training.name,
        "after": ", ".join(reader.names[:-1]) or "-",
        "trained parameters": trained,
        "share": f"{trained / total:.1%}",
        "accuracy": round(score.accuracy, 4),
        "loss": round(score.loss, 4),
        "saved for backward (MiB)": round(memory.saved / MIB, 2),
        "peak resident (MiB)": None if memory.resident is None else round(memory.resident / MIB),
        "rows/s": round(training.samples_per_second, 1),
    }
    rows = sum(len(batch.labels) for batch in training.batches)
    counts = torch.cat([batch.labels for batch in training.batches]).bincount()
    return Report(
        title=f"{rows} rows trained on, {held_out} held out, {int((counts > 0).sum())} labels",
        rows=[row],
        facts={
            "settings": asdict(training.settings),
            "share of the most frequent label": int(counts.max()) / rows,
            "memory": f"of one step at the largest batch; {SAVED}; {RESIDENT}",
            "rows/s": "of the training steps alone, on this machine as it was",
            "environment": environment.describe(),
        },
    )


def test(model: Path, folder: Path, modality: str, features: Path) -> Score:
    """Score a modality's path on features of the user's, and print it.

    Raises:
        UserError: bad input.
    """
    reader, data = load_reader(folder, model), Features(features)
    try:
        reader.paths.set_modality(modality)
    except ValueError as error:
        raise UserError(f"--modality: {error}") from error
    sizes = reader.own.sizes
    if data.width != sizes.width or data.classes > sizes.classes:
        raise UserError(
            f"--features: expected width {sizes.width} and at most {sizes.classes} labels for "
            f"{modality}, got {data.width} and {data.classes}"
        )
    score = _evaluate(reader, make_batches(data, range(len(data.labels)), Settings.batch))
    print(json.dumps({"modality": modality, "rows": len(data.labels), **asdict(score)}))
    return score
