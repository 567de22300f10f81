"""The demo of `iteris`: both studies, their claims and pictures."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from pyext import environment
from pyext.report import Claim, Report, Value
from pyext.show import show_rows
from pyext_plugins.bars import save_bars
from pyext_plugins.iteris.chart import save_residuals
from pyext_plugins.iteris.demo import digits_table, language, language_table
from pyext_plugins.iteris.demo.digits import Training
from pyext_plugins.iteris.peers import PEERS
from pyext_plugins.progress import progress_bar

SEEDS = (0, 1, 2)
MIND = [
    "The network of digits is a toy, and one encoder with one seed is no benchmark: what is shown "
    "are orderings, not how far apart the methods are elsewhere.",
    "All methods run at their defaults. Only the greedy soup is given labels, to choose by.",
]


def demo(output: Path) -> Report:
    """Digits, and where the data is at hand, texts. Writes pictures, and keeps what it trained."""
    return run(output, SEEDS, Training())


def run(
    output: Path,
    seeds: tuple[int, ...],
    training: Training,
    study: language.Study | None = None,
) -> Report:
    """Both studies.

    Args:
        output: for pictures and trained weights.
        seeds: of the digits.
        training: of the digits' base and LoRAs.
        study: of texts; None for MiniLM, if its data has been fetched.
    """
    with progress_bar("digits", len(seeds)) as show:
        results = digits_table.measure(output / "digits", seeds, training, lambda k: show(k, None))
    pictures = {"accuracy on the digits": output / "digits.png"}
    scores = {
        arm: [mean(task) for task in zip(*results.accuracies[arm, digits_table.MANY], strict=True)]
        for arm in digits_table.ARMS
    }
    label = f"accuracy on the digits (%), {digits_table.MANY} samples a task, {len(seeds)} seeds"
    save_bars(output / "digits.png", scores, label)
    assert results.merged is not None
    save_residuals(output / "digits_residuals.png", results.merged.report.rows)
    pictures["residual of each layer, digits"] = output / "digits_residuals.png"
    text_rows, text_claims, text_pictures = _texts(output, study)
    show_rows(text_rows, title=language_table.TITLE)
    for sentence in MIND:
        print(f"mind: {sentence}")
    return Report(
        title=f"One network of digits, four LoRAs merged: accuracy, {len(seeds)} seeds",
        rows=digits_table.rows(results),
        claims=[*digits_table.claims(results), *text_claims],
        pictures={**pictures, **text_pictures},
        facts={
            "mind": MIND,
            "training": asdict(training),
            "accuracies by task and seed (%)": {
                f"{arm}, n = {samples}": found
                for (arm, samples), found in results.accuracies.items()
            },
            "texts": text_rows,
            "environment": environment.describe(),
        },
    )


def _texts(
    output: Path, study: language.Study | None
) -> tuple[list[dict[str, Value]], list[Claim], dict[str, Path]]:
    """Rows, claims and pictures; without rows, and open, where the data is not here."""
    if study is None:
        if not language.is_here():
            names = " ".join((language.MODEL, *language.NAMES))
            print(f"not shown: texts; for them: pyext data fetch {names}", file=sys.stderr)
            return [], language_table.claims(None), {}
        print("training or reading the LoRAs of texts", file=sys.stderr)
        study = language.Study(output / "texts", language.Training())
    arms = len(PEERS) + len(language_table.ITERIS)
    with progress_bar("texts", arms) as show:
        results = language_table.measure(study, lambda done: show(done, None))
    save_bars(output / "texts.png", results.accuracies, "accuracy on texts (%)")
    assert results.merged is not None
    save_residuals(output / "texts_residuals.png", results.merged.report.rows)
    pictures = {
        "accuracy on texts": output / "texts.png",
        "residual of each layer, texts": output / "texts_residuals.png",
    }
    return language_table.rows(results), language_table.claims(results), pictures
