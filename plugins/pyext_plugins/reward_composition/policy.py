"""The demo's policy and its three rewards, which compete for the tokens of a sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TOKENS, WORDS, HIDDEN = 8, 12, 32
NAMES = ("A", "B", "C")
GAINS = (1.0, 0.8, 0.6)  # of a reward, where all tokens serve it
OWN = WORDS // len(NAMES)  # words that serve a reward


class Policy(nn.Module):
    """A GRU cell that writes `TOKENS` tokens of a vocabulary of `WORDS`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS + 1, HIDDEN)  # the last begins a sequence
        self.cell = nn.GRUCell(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, WORDS)

    @torch.no_grad()
    def sample(self, batch: int, generator: torch.Generator) -> Tensor:
        """Sequences [batch, TOKENS]."""
        state = torch.zeros(batch, HIDDEN)
        word = torch.full((batch,), WORDS)
        words = []
        for _ in range(TOKENS):
            state = self.cell(self.embed(word), state)
            word = self.head(state).softmax(-1).multinomial(1, generator=generator)[:, 0]
            words.append(word)
        return torch.stack(words, 1)

    def log_probability(self, words: Tensor) -> Tensor:
        """Of each token of sequences [B, TOKENS]; [B, TOKENS]."""
        begin = torch.full_like(words[:, :1], WORDS)
        inputs = self.embed(torch.cat((begin, words[:, :-1]), 1))
        state = torch.zeros(len(words), HIDDEN)
        logits = []
        for token in inputs.unbind(1):
            state = self.cell(token, state)
            logits.append(self.head(state))
        log_p = torch.stack(logits, 1).log_softmax(-1)
        return log_p.gather(-1, words.unsqueeze(-1)).squeeze(-1)


def score(words: Tensor) -> Tensor:
    """Rewards of sequences [B, TOKENS]: share of tokens that serve each, by its gain; [B, 3]."""
    served = torch.stack(
        [(words // OWN == number).float().mean(1) for number in range(len(NAMES))], 1
    )
    return served * torch.tensor(GAINS)


def best_worst() -> float:
    """The highest value that the lowest mean reward can have: tokens shared so that all are equal.

    With shares x_i of the tokens, of sum 1, the means are gain_i x_i: all v for x_i = v / gain_i.
    """
    return 1 / sum(1 / gain for gain in GAINS)


def equilibrium() -> list[float]:
    """The weights at which no token is worth more than another: proportional to 1 / gain."""
    return [best_worst() / gain for gain in GAINS]
