"""The small study of the demo: a LLaVA that reads digits, tuned to a shifted instruction.

scikit-learn's digits, 1797 pictures of 8 x 8. The base learns to name the digit and to tell odd
from even. Then pictures are inverted and upside down, the question is in words it never saw, and
the answer is 9 minus the digit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, BLOCKS, HEADS = 64, 2, 4
PATCHES = 16
QUESTION = 7  # words
KNOWN, TESTED, SHIFTED = 1297, 500, 600  # pictures: of the base, held out, of the new instruction
BATCH = 32
ENOUGH, CHECK_EVERY, MOST_STEPS = 85.0, 100, 2000  # accuracy (%) that ends the base's training
STEPS = 200

SYSTEM, SLOT, IMAGE = (1, 2), 3, 4
DIGITS, PARITIES = 5, 15  # the first of their answers
QUESTIONS = {"digit": 20, "parity": 27, "shifted": 34}  # the first of their words
VOCABULARY = 41


@dataclass(frozen=True)
class Task:
    """Pictures [n, 1, 8, 8] in [-1, 1], the word of the answer to each [n], and the question."""

    pictures: Tensor
    answers: Tensor
    question: str

    def take(self, rows: Tensor | slice) -> Task:
        return replace(self, pictures=self.pictures[rows], answers=self.answers[rows])

    def inputs(self) -> dict[str, Tensor]:
        """What a LLaVA reads; its last token is where the answer is given."""
        first = QUESTIONS[self.question]
        words = [*SYSTEM, *[IMAGE] * PATCHES, *range(first, first + QUESTION), SLOT]
        ids = torch.tensor(words).expand(len(self.answers), -1)
        mask = torch.ones_like(ids)
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": self.pictures}


@dataclass(frozen=True)
class Digits:
    """What the base is trained and tested on, and what its tuning is."""

    digit: Task
    parity: Task
    held_out: Task
    shifted: Task
    test: Task


def load_digits() -> Digits:
    """scikit-learn's digits, in one order for all seeds."""
    from sklearn import datasets

    found = datasets.load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    pictures = torch.tensor(found.images, dtype=torch.float32)[order].unsqueeze(1) / 8 - 1
    labels = torch.tensor(found.target)[order]
    digit = Task(pictures, DIGITS + labels, "digit")
    parity = Task(pictures, PARITIES + labels % 2, "parity")
    # 16 levels of grey: -1 to 1 is inverted by the sign.
    shifted = Task(-pictures.flip(-2), DIGITS + 9 - labels, "shifted")
    known, held_out = slice(0, KNOWN), slice(KNOWN, KNOWN + TESTED)
    return Digits(
        digit.take(known),
        parity.take(known),
        digit.take(held_out),
        shifted.take(slice(0, SHIFTED)),
        shifted.take(held_out),
    )


def make_model(seed: int) -> nn.Module:
    """A LLaVA of width 64: two vision blocks, the projector, two blocks of language."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "intermediate_size": 2 * WIDTH,
    }
    vision = CLIPVisionConfig(image_size=8, patch_size=2, num_channels=1, **sizes)
    text = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=HEADS, pad_token_id=0, **sizes)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def make_base(digits: Digits, seed: int) -> tuple[nn.Module, int, float]:
    """The model, trained on both instructions until it reads digits well enough.

    Returns:
        The model in evaluation mode, the steps it took, its accuracy on held-out digits (%).
    """
    model = make_model(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    reached, step = 0.0, 0
    tasks = batches(digits.digit, seed), batches(digits.parity, seed + 1)
    while step < MOST_STEPS and reached < ENOUGH:
        for _ in range(CHECK_EVERY):
            loss = torch.stack([loss_of(model, next(task)) for task in tasks]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        step += CHECK_EVERY
        reached = accuracy(model, digits.held_out)
        model.train()
    return model.eval(), step, reached


def fit(model: nn.Module, task: Task, seed: int, step_size: float, steps: int = STEPS) -> None:
    """Adam with one cycle of step sizes, on random batches; trains what wants a gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=step_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, step_size, total_steps=steps)
    model.train()
    drawn = batches(task, seed)
    for _ in range(steps):
        loss = loss_of(model, next(drawn))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def batches(task: Task, seed: int) -> Iterator[Task]:
    """Random batches for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield task.take(torch.randperm(len(task.answers), generator=generator)[:BATCH])


def logits(model: nn.Module, task: Task) -> Tensor:
    """Of the word at the answer's place, [n, words]."""
    found = model(**task.inputs(), use_cache=False, logits_to_keep=1).logits
    return cast(Tensor, found[:, -1])


def loss_of(model: nn.Module, task: Task) -> Tensor:
    return F.cross_entropy(logits(model, task), task.answers)


@torch.no_grad()
def accuracy(model: nn.Module, task: Task) -> float:
    """In percent."""
    model.eval()
    found = logits(model, task).argmax(-1)
    return 100 * float((found == task.answers).float().mean())
