"""The demo of `pathweave`: what of the method shows on digits in five kinds of view.

Shown: that earlier paths are exactly what they were, while tuning all weights on and on forgets;
and that gated paths that reuse earlier ones are not more than 2 points behind paths that stand
alone once training is long enough. Not shown, since short runs show the contrary or nothing: a gain
of the gate over the plain sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

from pyext import environment
from pyext.report import Claim, Report, Value
from pyext_plugins.pathweave.demo import arms
from pyext_plugins.pathweave.demo.arms import ALONE, ARMS, PATHS, SEQUENTIAL, SUM, WOVEN, Reader
from pyext_plugins.pathweave.demo.chart import save_chart
from pyext_plugins.pathweave.demo.views import VIEWS, View, load_views
from pyext_plugins.pathweave.metrics import TransferAndForgetting, transfer_and_forgetting
from pyext_plugins.pathweave.paths import PathLinear, Stage
from pyext_plugins.progress import progress_bar

SHORT, LONG = 120, 300  # steps for each new view
LONG_VIEWS = ("image", "video", "depth")
SEEDS = (0, 1, 2)
MIND = [
    "The network of digits is a toy: what is shown are orderings, not how far apart the arms are "
    "elsewhere.",
    "That separate paths forget nothing is no finding but how they are made; what is shown is that "
    "it is so, to the bit.",
    "Each path is told which modality it is given. The arms that tune on and on are not.",
]


@dataclass(frozen=True)
class Size:
    """Steps of the base, of each new view with all arms, and of each with paths alone."""

    base: int = arms.BASE_STEPS
    short: int = SHORT
    long: int = LONG


@dataclass
class Results:
    """What was measured, by arm, one a seed."""

    short: dict[str, list[TransferAndForgetting]] = field(default_factory=dict)
    long: dict[str, list[TransferAndForgetting]] = field(default_factory=dict)
    apart: list[float] = field(default_factory=list)
    changed: int = 0  # logits of earlier paths, all arms and seeds

    def last(self, arm: str) -> list[float]:
        """T on the last view of the long runs, by seed."""
        return [found.transfer[-1] for found in self.long[arm]]

    def new(self, arm: str) -> list[float]:
        """T of the short runs, the mean over the views that have others before them, by seed."""
        return [mean(found.transfer[2:]) for found in self.short[arm]]


def demo(output: Path) -> Report:
    """The whole study. Writes chart.png."""
    return run(output, SEEDS, Size())


def run(output: Path, seeds: Sequence[int], size: Size) -> Report:
    """The study at some size."""
    with one_thread():
        results = _measure(seeds, size)
    chart = output / "chart.png"
    titles = [f"{size.short} steps a view", f"{size.long} steps a view"]
    save_chart(chart, titles, [(VIEWS, results.short), (LONG_VIEWS, results.long)])
    gate = mean(results.new(WOVEN)) - mean(results.new(SUM))
    mind = [*MIND, _of_gate(gate, size)]
    for sentence in mind:
        print(f"mind: {sentence}")
    return Report(
        title=f"PathWeave on five kinds of view of digits: means over {len(seeds)} seeds",
        rows=[
            *(_row(arm, size.short, VIEWS, found) for arm, found in results.short.items()),
            *(_row(arm, size.long, LONG_VIEWS, found) for arm, found in results.long.items()),
        ],
        claims=_claims(results, size),
        pictures={"T and F of all arms": chart},
        facts={
            "mind": mind,
            "T and F by seed": {
                f"{arm}, {steps} steps": [found._asdict() for found in own]
                for steps, study in ((size.short, results.short), (size.long, results.long))
                for arm, own in study.items()
            },
            "gate over plain sum, short runs (points)": gate,
            "environment": environment.describe(),
        },
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Operations on digits are too small to share among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(seeds: Sequence[int], size: Size) -> Results:
    views, results, done = load_views(), Results(), 0
    with progress_bar("arms and seeds", len(seeds) * (len(ARMS) + len(PATHS))) as show:
        for seed in seeds:
            base = arms.make_base(views["image"], seed, size.base)
            for study, names, order, steps in (
                (results.short, ARMS, VIEWS, size.short),
                (results.long, tuple(PATHS), LONG_VIEWS, size.long),
            ):
                for arm in names:
                    learned = arms.learn(arm, base, views, order, steps, seed)
                    study.setdefault(arm, []).append(transfer_and_forgetting(learned.scores))
                    if arm in PATHS:
                        results.changed += learned.changed
                    if arm == WOVEN:
                        results.apart.append(_apart(learned.reader, views[order[-1]]))
                    done += 1
                    show(done, None)
    return results


def _claims(results: Results, size: Size) -> list[Claim]:
    forgotten = [
        abs(value)
        for study in (results.short, results.long)
        for arm in PATHS
        for found in study[arm]
        for value in found.forgetting
    ]
    return [
        Claim("separate paths: most forgotten at any step, seed and arm", max(forgotten), "<=", 0),
        Claim("separate paths: logits of earlier views that changed", results.changed, "<=", 0),
        Claim(
            "all weights tuned on: forgotten at the end, least of all seeds, points",
            min(found.forgetting[-1] for found in results.short[SEQUENTIAL]),
            ">=",
            10,
        ),
        Claim(
            f"gated paths over paths alone, {LONG_VIEWS[-1]} after {size.long} steps, mean, points",
            mean(results.last(WOVEN)) - mean(results.last(ALONE)),
            ">=",
            -2,
        ),
        Claim(
            "one pass over all adapters against one after the other, largest relative difference",
            max(results.apart),
            "<=",
            1e-4,
        ),
    ]


def _of_gate(gate: float, size: Size) -> str:
    measured = (
        f"After {size.short} steps the gate is {abs(gate):.1f} points "
        f"{'below' if gate < 0 else 'above'} the plain sum (mean T of views with others before "
        "them); a gain of it is not claimed."
    )
    if gate >= 0:
        return measured
    return (
        f"{measured} A likely reason: it starts at equal weights, with noise of deviation 0.70 on "
        "its logits, which holds the new adapter back in short runs."
    )


def _row(
    arm: str, steps: int, order: Sequence[str], found: Sequence[TransferAndForgetting]
) -> dict[str, Value]:
    transfer = dict(
        zip(order, map(mean, zip(*(own.transfer for own in found), strict=True)), strict=True)
    )
    forgetting = [mean(values) for values in zip(*(own.forgetting for own in found), strict=True)]
    return {
        "arm": arm,
        "steps": steps,
        **{f"T {view}": round(transfer[view], 1) if view in transfer else None for view in VIEWS},
        "F at each step": " ".join(f"{value:.1f}" for value in forgetting[1:]),
    }


@torch.no_grad()
def _apart(reader: Reader, view: View) -> float:
    """How far the sites' outputs are from those of adapters that run one after the other."""
    found = []

    def compare(path: nn.Module, given: tuple[Tensor], y: Tensor) -> None:
        assert isinstance(path, PathLinear)
        assert path.active is not None
        stage = path.stages[path.active]
        assert isinstance(stage, Stage)
        wanted = one_by_one(path.linear, stage, given[0])
        found.append(float((y - wanted).norm() / wanted.norm()))

    hooks = [path.register_forward_hook(compare) for path in reader.paths.sites.values()]
    reader.eval()(view.test.features)
    for hook in hooks:
        hook.remove()
    return max(found)


def one_by_one(linear: nn.Linear, stage: Stage, x: Tensor) -> Tensor:
    """A site's output without noise, each adapter reading x and writing its output."""
    y: Tensor = linear(x)
    gates = None if stage.Wg is None else (x @ stage.Wg).softmax(-1)
    for e, adapter in enumerate(stage.adapters):
        v = x @ adapter.A.T + adapter.a
        if e < len(stage.inner):
            v = stage.inner[e](v)
        own = adapter.scale * (v @ adapter.B + adapter.c)
        y = y + (own if gates is None else gates[..., e, None] * own)
    return y
