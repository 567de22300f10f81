"""The demo: what of the method shows on scikit-learn's digits, and what of it may be claimed.

Shown: that points between inversions give less variety than points around the circle; that the
circle keeps to its class where the model knows the class, and does not where it does not; and the
order of accuracy between circle, linear, slerp and no augmentation, on the mean over labelled sets.
Not shown, since a study of this size cannot: a gain over fresh noise, or over image editing.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from pyext import environment
from pyext.report import Claim, Report, Value
from pyext.show import show_rows
from pyext_plugins.diffii.arms import ARMS, NORMS
from pyext_plugins.diffii.digits import Digits
from pyext_plugins.diffii.generator import CAPTIONED, UNCAPTIONED, Training
from pyext_plugins.diffii.pictures import save_grid, save_walk
from pyext_plugins.diffii.speed import images_per_second
from pyext_plugins.diffii.study import Size, Study
from pyext_plugins.progress import interruptible
from pyext_plugins.session import exit_interrupted, go_on

LOSS = "loss {:.3f}"
GATE = 0.9  # faithfulness below which the generator does not know the classes
MIND = [
    "The claims on accuracy are on means: where an interval reaches below 0, other labelled sets "
    "may give another order.",
    "No gain over fresh noise with the class's token, or over image editing, is claimed: it is "
    "within what labelled sets differ by.",
    "Nor over moving originals by a pixel. These digits fill their frame from top to bottom, so a "
    "moved one loses a line.",
    "Intervals are 95 % over labelled sets (Student's t), a set's gain being the mean over its "
    "classifiers. Every classifier takes the same number of steps and its last one counts.",
]


def demo(output: Path) -> Report:
    """The whole study. Writes a grid of samples for each arm, and circle.png."""
    return run(output, Size(), UNCAPTIONED, CAPTIONED)


def run(output: Path, size: Size, uncaptioned: int, captioned: int) -> Report:
    """The study at some size.

    Args:
        uncaptioned, captioned: steps of the generator's training.

    Raises:
        UserError, typer.Exit: see `train`.
    """
    digits = Digits()
    training = train(digits, output / "generator", uncaptioned, captioned)
    study = Study(digits, training.unet.eval(), size, output / "generator")
    console = Console(stderr=True)
    for _ in track(study.work(), "arms", total=study.parts, console=console, transient=True):
        pass
    batched, single = images_per_second()
    show_rows(_gain_rows(study), title="circle's gain in accuracy")
    print(
        f"a tiny Stable Diffusion: {batched:.1f} images/s in one batch, {single:.1f} alone, "
        f"{batched / single:.1f} times as many"
    )
    for sentence in MIND:
        print(f"mind: {sentence}")
    return Report(
        title=f"Diff-II on digits: {len(size.draws)} labelled sets, {size.seeds} classifiers each",
        rows=[_row(arm, study) for arm in ARMS],
        claims=_claims(study),
        pictures=_pictures(output, study),
        facts=_facts(study)
        | {
            "generator's training (s)": round(training.seconds, 1),
            "tiny Stable Diffusion, images/s in one batch": round(batched, 1),
            "tiny Stable Diffusion, images/s one at a time": round(single, 1),
            "tiny Stable Diffusion, how many times faster": round(batched / single, 1),
            "mind": MIND,
            "environment": environment.describe(),
        },
    )


def train(digits: Digits, folder: Path, uncaptioned: int, captioned: int) -> Training:
    """The generator, trained; or taken from the folder, if it was trained before.

    Raises:
        UserError: the folder holds another training.
        typer.Exit: with code 130, after Ctrl-C.
    """
    training = Training(digits, uncaptioned, captioned)
    folder.mkdir(parents=True, exist_ok=True)
    with interruptible() as stopped:
        go_on(training, training.steps, folder, stopped, label="generator", form=LOSS)
    if not training.done:
        exit_interrupted(training.step)
    return training


def _claims(study: Study) -> list[Claim]:
    own = study.arms
    circle = own["circle"]
    ratios = {
        arm: [a / b for a, b in zip(own[arm].norm_ratio, study.inversion_norms, strict=True)]
        for arm in NORMS
    }
    off = [abs(ratio - 1) for arm in ("slerp", "circle") for ratio in ratios[arm]]
    gains = [
        Claim(f"accuracy of circle above {arm}, mean gain in points", _gain(study, arm), ">=", 0)
        for arm in ("linear", "slerp", "none")
    ]
    variety = [
        Claim(
            f"variety of circle over {arm}'s, least of all sets",
            min(a / b for a, b in zip(circle.diversity, own[arm].diversity, strict=True)),
            ">=",
            1.05,
        )
        for arm in ("linear", "slerp")
    ]
    return [
        Claim(
            "gate: faithfulness of fresh noise, mean",
            statistics.mean(own["noise"].faithfulness),
            ">=",
            GATE,
        ),
        Claim("faithfulness of circle, mean", statistics.mean(circle.faithfulness), ">=", GATE),
        Claim(
            "faithfulness of circle where the model is not told the class, first set",
            study.without_concepts,
            "<=",
            0.5,
        ),
        *gains,
        *variety,
        Claim(
            "linear's |Z| over the inversions', most of all sets", max(ratios["linear"]), "<=", 0.9
        ),
        Claim("slerp's and circle's |Z| off the inversions', most", max(off), "<=", 0.03),
        Claim("mean square error of inversion and back, most", max(study.errors), "<=", 0.01),
    ]


def _gain(study: Study, arm: str) -> float:
    return statistics.mean(study.gains("circle", arm))


def _interval(values: Sequence[float]) -> str | None:
    """The 95 % interval of the mean, as what is added and taken away; None for a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"+-{t.ppf(0.975, len(values) - 1) * error:.2f}"


def _gain_rows(study: Study) -> list[dict[str, Value]]:
    """Of circle over every other arm, on the mean over labelled sets."""
    rows: list[dict[str, Value]] = []
    for arm in ARMS[:-1]:
        gains = study.gains("circle", arm)
        rows.append(
            {
                "over": arm,
                "mean (points)": round(statistics.mean(gains), 2),
                "95 %": _interval(gains),
                "by set": ", ".join(f"{gain:+.1f}" for gain in gains),
            }
        )
    return rows


def _row(arm: str, study: Study) -> dict[str, Value]:
    own = study.arms[arm]
    gains = study.gains(arm, "none")
    return {
        "arm": arm,
        "accuracy (%)": round(statistics.mean(own.by_draw()), 1),
        "over none (points)": None if arm == "none" else round(statistics.mean(gains), 2),
        "95 %": None if arm == "none" else _interval(gains),
        "faithfulness": round(statistics.mean(own.faithfulness), 3),
        "variety": round(statistics.mean(own.diversity), 2),
        "to nearest original": round(statistics.mean(own.novelty), 2) if own.novelty else None,
        "|Z|/sqrt(D)": round(statistics.mean(own.norm_ratio), 3) if own.norm_ratio else None,
    }


def _facts(study: Study) -> dict[str, object]:
    return {
        "labelled sets (pictures of each class, number)": study.size.draws,
        "accuracy by set and classifier (%)": {a: study.arms[a].accuracies for a in ARMS},
        "circle's gain": _gain_rows(study),
        "inversions' |I|/sqrt(D)": study.inversion_norms,
        "inversions' cosine within a class": {
            "mean": statistics.mean(study.cosines),
            "standard deviation": statistics.pstdev(study.cosines),
        },
        "mean square error of inversion and back": study.errors,
    }


def _pictures(output: Path, study: Study) -> dict[str, Path]:
    found = {}
    for arm, pictures in study.shown.items():
        path = output / f"{arm.replace(' ', '-')}.png"
        save_grid(path, pictures)
        found[f"samples, {arm}"] = path
    if study.first is not None:
        path = output / "circle-walk.png"
        save_walk(path, study.first)
        found["around a circle from one inversion, and the two originals"] = path
    return found
