"""What the demo compares: ways to learn new views of digits with a Q-Former that knows one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyext_plugins.pathweave.demo.views import WIDTH, Tokens, View
from pyext_plugins.pathweave.model import PathWeave
from pyext_plugins.pathweave.paths import Gate
from pyext_plugins.pathweave.qformers import qformer_sites

QUERIES, HEADS, LAYERS = 8, 4, 2
RANK = 4
BATCH = 64
BASE_STEPS = 300
STEP_SIZE, ADAPTER_STEP_SIZE = 3e-3, 1e-2

SEQUENTIAL = "sequential, all weights"
SHARED = "one adapter, tuned on"
ALONE = "paths, each alone"
SUM = "paths, plain sum"
WOVEN = "paths, gated (AnA)"
ARMS = (SEQUENTIAL, SHARED, ALONE, SUM, WOVEN)
PATHS: dict[str, dict[str, Any]] = {
    ALONE: {"reuse": False},
    SUM: {"gate": "none"},
    WOVEN: {"gate": "noisy"},
}


class Reader(nn.Module):
    """A Q-Former with its queries under a linear head, which stands for the language model."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        config = Blip2QFormerConfig(
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=2 * WIDTH,
            encoder_hidden_size=WIDTH,
            cross_attention_frequency=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.queries = nn.Parameter(torch.randn(1, QUERIES, WIDTH))
        self.qformer: nn.Module = Blip2QFormerModel(config)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, features: Tensor) -> Tensor:
        queries = self.queries.expand(len(features), -1, -1)
        output = self.qformer(query_embeds=queries, encoder_hidden_states=features)
        return cast(Tensor, self.head(output.last_hidden_state.mean(1)))

    @property
    def paths(self) -> PathWeave:
        return cast(PathWeave, self.qformer)


def make_base(view: View, seed: int, steps: int = BASE_STEPS) -> Reader:
    """A reader that knows one view."""
    torch.manual_seed(seed)
    reader = Reader()
    fit(reader, view.train, steps, STEP_SIZE, seed)
    return reader


@dataclass(frozen=True)
class Learner:
    """An arm: ``learn(view)`` is called before each new view, ``show(view)`` before a test."""

    reader: Reader
    step_size: float
    learn: Callable[[str], None]
    show: Callable[[str], None]


def make(arm: str, base: Reader, first: str) -> Learner:
    """An arm that starts from a reader that knows the view ``first``; the reader is copied."""
    reader = copy.deepcopy(base)
    if arm == SEQUENTIAL:
        return Learner(reader, STEP_SIZE, lambda view: None, lambda view: None)
    reader.requires_grad_(False)
    reader.qformer = PathWeave(reader.qformer, qformer_sites(reader.qformer))
    paths = reader.paths
    if arm == SHARED:
        paths.add_modality("shared", rank=RANK)
        # Of the first view it knows nothing, and is taken off.
        return Learner(
            reader,
            ADAPTER_STEP_SIZE,
            lambda view: paths.set_modality("shared"),
            lambda view: paths.set_modality(None if view == first else "shared"),
        )
    more = PATHS[arm]

    def show(view: str) -> None:
        paths.set_modality(None if view == first else view)

    def learn(view: str) -> None:
        paths.add_modality(
            view,
            rank=RANK,
            gate=cast(Gate, more.get("gate", "noisy")),
            reuse=more.get("reuse", True),
        )

    return Learner(reader, ADAPTER_STEP_SIZE, learn, show)


@dataclass(frozen=True)
class Learned:
    """What learning views one after the other led to.

    Args:
        scores: row m holds the accuracies in percent on views 0..m after view m was learned.
        changed: logits of test pictures of earlier views that were no longer the same, over all
            steps.
        reader: at the end, ready for the last view.
    """

    scores: list[list[float]]
    changed: int
    reader: Reader


def learn(
    arm: str, base: Reader, views: dict[str, View], order: Sequence[str], steps: int, seed: int
) -> Learned:
    """Learn views one after the other; the base knows the first."""
    torch.manual_seed(seed)
    learner = make(arm, base, order[0])
    scores, changed, first = [], 0, dict[str, Tensor]()
    for m, view in enumerate(order):
        if m:
            learner.learn(view)
            fit(learner.reader, views[view].labelled(seed), steps, learner.step_size, seed)
        row = []
        for known in order[: m + 1]:
            learner.show(known)
            logits = read(learner.reader, views[known].test)
            changed += int((logits != first.setdefault(known, logits)).sum())
            row.append(accuracy(logits, views[known].test))
        scores.append(row)
    return Learned(scores, changed, learner.reader)


def fit(reader: Reader, tokens: Tokens, steps: int, step_size: float, seed: int) -> None:
    """AdamW on random batches, at one step size."""
    trained = [parameter for parameter in reader.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=step_size, fused=True)
    generator = torch.Generator().manual_seed(seed)
    reader.train()
    for _ in range(steps):
        batch = tokens.rows(torch.randint(len(tokens.labels), (BATCH,), generator=generator))
        optimizer.zero_grad()
        F.cross_entropy(reader(batch.features), batch.labels).backward()
        optimizer.step()


@torch.no_grad()
def read(reader: Reader, tokens: Tokens) -> Tensor:
    """Logits [n, 10]."""
    return cast(Tensor, reader.eval()(tokens.features))


def accuracy(logits: Tensor, tokens: Tokens) -> float:
    """In percent."""
    return 100 * float((logits.argmax(-1) == tokens.labels).float().mean())
