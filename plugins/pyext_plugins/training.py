"""Training over batches, to the same bits however often it is put down and taken up again."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pyext_plugins.adam import restore_training, training_state
from pyext_plugins.memory import Memory, PeakResident, saved_by

CLIP = 1.0  # norm of the gradient
SMOOTH = 0.95  # share of the shown loss that the next step leaves
MEASURED_STEPS = 3  # over which the peak resident is taken


class BatchTraining(ABC):
    """AdamW over numbered batches, all of them in each epoch, every time in another order.

    Args:
        model: what of it wants a gradient is trained.
        epochs: over all batches.
        batches: how many.
        step_size: the largest; rises linearly to it, then falls linearly.
        seed: of the order, and of what is random in a step.
        warm_up: share of the steps in which the step size rises.
        weight_decay: AdamW's.
    """

    def __init__(
        self,
        model: nn.Module,
        epochs: int,
        batches: int,
        step_size: float,
        seed: int,
        warm_up: float,
        weight_decay: float,
    ) -> None:
        self.model = model
        self.steps = epochs * batches
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), weight_decay=weight_decay, fused=True
        )
        self.step = 0
        self.seconds = 0.0
        self.loss_seen = 0.0
        self._batches, self._largest_step, self._seed = batches, step_size, seed
        self._rising = max(1, round(warm_up * self.steps))

    @abstractmethod
    def loss(self, number: int) -> Tensor:
        """Of a batch."""

    @abstractmethod
    def tokens(self, number: int) -> int:
        """How large a batch is."""

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def advance(self) -> float:
        """Take one step; return the loss of late."""
        began = time.perf_counter()
        self.model.train()
        # The step alone decides, so that a training that was put down goes on the same.
        torch.manual_seed(hash((self._seed, self.step)))
        self.optimizer.param_groups[0]["lr"] = self._step_size()
        loss = self.loss(self._number())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        keep = SMOOTH if self.step else 0.0
        self.loss_seen = keep * self.loss_seen + (1 - keep) * float(loss.detach())
        self.step += 1
        self.seconds += time.perf_counter() - began
        return self.loss_seen

    def measure(self) -> Memory:
        """Of a step at the largest batch; nothing is changed but gradients, which are dropped."""
        self.model.train()
        number = max(range(self._batches), key=self.tokens)
        saved = saved_by(self.model, lambda: self.loss(number))
        peak = PeakResident(self.device)
        for _ in range(MEASURED_STEPS):
            self.loss(number).backward()
            self.optimizer.zero_grad(set_to_none=True)
        return Memory(saved, peak.bytes())

    def _number(self) -> int:
        epoch, place = divmod(self.step, self._batches)
        generator = torch.Generator().manual_seed(hash((self._seed, epoch)))
        return int(torch.randperm(self._batches, generator=generator)[place])

    def _step_size(self) -> float:
        largest, rising = self._largest_step, self._rising
        if self.step < rising:
            return largest * (self.step + 1) / rising
        return largest * (self.steps - self.step) / max(1, self.steps - rising)

    def state(self) -> dict[str, Tensor]:
        """All that the rest of the training depends on, besides step and seconds."""
        tensors = training_state(self.parameters, self.optimizer)
        return {"loss": torch.tensor(self.loss_seen, dtype=torch.float64), **tensors}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.loss_seen = float(tensors["loss"])
        restore_training(self.parameters, self.optimizer, tensors)
