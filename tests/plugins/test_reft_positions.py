"""Which tokens are edited, against a count by hand."""

import random

import pytest
import torch
from pyext_plugins.reft.positions import IGNORED, ends, prompt, question


def ends_by_hand(counting, prefix, suffix):
    rows = []
    length = len(counting[0])
    for row, own in enumerate(counting):
        at = [row * length + token for token, counts in enumerate(own) if counts]
        n = len(at)
        p, s = min(prefix, n // 2), min(suffix, (n + 1) // 2)
        first, last = at[:p], at[n - s :]
        rows.append(first + [-1] * (prefix - p) + last + [-1] * (suffix - s))
    return rows


@pytest.mark.parametrize(("prefix", "suffix"), [(0, 1), (3, 0), (1, 1), (2, 5), (9, 9)])
def test_ends_are_the_first_and_last_that_count(prefix, suffix):
    random.seed(0)
    counting = [[random.random() < share for _ in range(8)] for share in (0, 0.2, 0.5, 0.8, 1)]
    counting += [[n > token for token in range(8)] for n in range(9)]
    found = ends(torch.tensor(counting), prefix, suffix)
    assert found.tolist() == ends_by_hand(counting, prefix, suffix)
    rows = found[found >= 0]
    assert len(rows.unique()) == len(rows)


def test_the_prompt_ends_where_the_answer_begins():
    real = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    labels = torch.full((3, 6), IGNORED)
    labels[0, 4:], labels[1, 2] = 7, 7
    assert prompt(real, labels).int().tolist() == [
        [0, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1],
    ]
    assert torch.equal(prompt(real, None), real)


def test_the_question_is_behind_the_last_image_and_before_its_answer():
    x, i, a, p = "x", "i", "a", "."  # a word, part of an image, an answer, padding
    rows = [
        [x, i, i, x, x, a, a, p],  # one image
        [p, p, i, x, i, x, x, a],  # two, filled up on the left
        [x, x, x, a, a, p, p, p],  # none
        [x, i, i, a, x, i, x, a],  # an answer before the last image is of another question
        [x, x, i, i, p, p, p, p],  # cut off behind the image
        [i, x, a, x, a, x, a, p],  # several answers: the question is before the first
    ]
    wanted = ["...xx...", ".....xx.", "xxx.....", "......x.", "........", ".x......"]
    real = torch.tensor([[token != p for token in row] for row in rows])
    image = torch.tensor([[token == i for token in row] for row in rows])
    labels = torch.tensor([[7 if token == a else IGNORED for token in row] for row in rows])
    found = question(real, image, labels)
    assert ["".join("x" if own else "." for own in row) for row in found.tolist()] == wanted
    unlabelled = question(real, image, None)
    assert ["".join("x" if own else "." for own in row) for row in unlabelled.tolist()][:3] == [
        "...xxxx.",
        ".....xxx",
        "xxxxx...",
    ]
