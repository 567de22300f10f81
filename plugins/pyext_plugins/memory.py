"""How much memory a training step takes, and what exactly is counted."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SAVED = (
    "saved for backward: bytes of all tensors that autograd keeps between forward and backward, "
    "each storage once, parameters not counted, inputs counted"
)
RESIDENT = (
    "peak resident: the most memory the process held at once during the steps measured, all of it: "
    "program, weights, data; on a GPU what torch's allocator held"
)


@dataclass(frozen=True)
class Memory:
    """Of one training step at the largest batch, in bytes; None where it is not known."""

    saved: int
    resident: int | None


def saved_bytes(run: Callable[[], Any], parameters: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps for the backward pass of ``run``, which returns the loss.

    Every storage is counted once, however many views of it are kept; storages of ``parameters``
    are not counted.
    """
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # The result holds the graph, so that no address is given out twice.
        result = run()
    del result
    return sum(sizes.values())


def saved_by(model: nn.Module, run: Callable[[], Any]) -> int:
    """`saved_bytes` of a step of a model, its parameters and buffers not counted."""
    return saved_bytes(run, [*model.parameters(), *model.buffers()])


def _give_back_what_is_free() -> None:
    """Else the process would seem to hold what it only has not returned to the system."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


class PeakResident:
    """The most memory this process holds from now on; None where the system does not tell."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        _give_back_what_is_free()
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._known = True
        except OSError:
            self._known = False

    def bytes(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if not self._known:
            return None
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else None
