"""Ways of merging, by their names on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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


# From base, tasks, settings, what a checkpoint must have in common with the work, and a folder for
# files that the work needs on its way.
Method = Callable[[nn.Module, Sequence[Task], Settings, Mapping[str, str], Path], Merger]


def _by_peer(name: str) -> Method:
    return lambda model, tasks, settings, identity, folder: PeerMerging(
        name, model, tasks, settings, identity
    )


METHODS: dict[str, Method] = {"iteris": Merging, **{name: _by_peer(name) for name in PEERS}}
