"""Ways of merging, by their names on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from torch import nn

from pyext_plugins.iteris.merging import Merged, Merging
from pyext_plugins.iteris.peers import PEERS
from pyext_plugins.iteris.peers.merger import PeerMerging
from pyext_plugins.iteris.settings import Settings
from pyext_plugins.iteris.tasks import Task
from pyext_plugins.session import Work


class Merger(Work, Protocol):
    """Merging in steps; `result` is asked for when all are done."""

    @property
    def steps(self) -> int:
        """How many there are."""

    def result(self) -> Merged:
        """What came out."""


# From base, tasks, settings, and what a checkpoint must have in common with the work.
Method = Callable[[nn.Module, Sequence[Task], Settings, Mapping[str, str]], Merger]

METHODS: dict[str, Method] = {
    "iteris": Merging,
    **{name: partial(PeerMerging, name) for name in PEERS},
}
