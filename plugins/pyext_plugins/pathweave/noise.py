"""Where the noise of the gates comes from, and how a recomputation gets the same again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor


class Noise:
    """Standard normal numbers, from a generator of one's own or from torch's.

    Gradient checkpointing runs a part of the forward pass again, which must meet the same noise.
    torch puts its own generators back by itself; of any other it knows nothing, and needs
    ``context_fn=noise.same``.

    Args:
        generator: None for torch's own of the device.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator
        self._replaying = False

    def draw(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Numbers of this shape.

        Raises:
            RuntimeError: this is a recomputation that would get other numbers.
        """
        if self.generator is None:
            return torch.randn(*shape, dtype=dtype, device=device)
        if torch._C._current_graph_task_id() != -1 and not self._replaying:
            raise RuntimeError(
                "noise: the forward pass is computed again, with a generator that checkpointing "
                "does not know; pass it context_fn=model.same_noise"
            )
        place = self.generator.device
        drawn = torch.randn(*shape, dtype=dtype, device=place, generator=self.generator)
        return drawn.to(device)

    def same(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For a checkpointed part: what it runs under at first, and when it runs again."""
        states: list[Tensor] = []
        return self._record(states), self._replay(states)

    @contextmanager
    def _record(self, states: list[Tensor]) -> Iterator[None]:
        if self.generator is not None:
            states.append(self.generator.get_state())
        yield

    @contextmanager
    def _replay(self, states: list[Tensor]) -> Iterator[None]:
        if self.generator is None:
            yield
            return
        kept, before = self.generator.get_state(), self._replaying
        self.generator.set_state(states[0])
        self._replaying = True
        try:
            yield
        finally:
            self._replaying = before
            self.generator.set_state(kept)
