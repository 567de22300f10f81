"""What the machine can do at most: memory copied, and fused multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.harness import Limits
from benchmarks.turns import Clock, Sample
from pyext.runtime import fma_peak

PROBE_SECONDS = 0.02
COPY_BYTES = 2**28  # far more than any cache holds


class CopyProbe:
    """Copies a large tensor; a sample is the bytes read and written per second."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.source = torch.ones(COPY_BYTES // (2 * 4))
        self.target = torch.zeros_like(self.source)

    def __call__(self) -> float:
        start = self.clock()
        self.target.copy_(self.source)
        return COPY_BYTES / (self.clock() - start)


def probes(clock: Clock) -> tuple[Sample, Sample]:
    """What to sample for `best_of`: bytes copied and operations done, per second."""
    return CopyProbe(clock), lambda: fma_peak(PROBE_SECONDS)


def best_of(bandwidths: Sequence[float], peaks: Sequence[float]) -> Limits:
    return Limits(bandwidth=max(bandwidths), fma_peak=max(peaks))
