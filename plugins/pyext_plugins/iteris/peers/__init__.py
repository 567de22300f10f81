"""What IterIS is compared with: other ways to merge LoRAs, by name, with one signature.

    from pyext_plugins.iteris.peers import Options, Problem, merge

    modules = merge("mean", Problem(tasks, Options(rank=8)))

`PEERS` lists them. An importer needs no peft until a method of peft is used.
"""

# Imported for what they register, in the order in which they are listed.
from pyext_plugins.iteris.peers import means, soups, regmean, through_peft  # noqa: F401, I001
from pyext_plugins.iteris.peers.registry import (
    PEERS,
    Grams,
    Modules,
    Options,
    Peer,
    Score,
    Problem,
    find,
    merge,
)

__all__ = [
    "PEERS",
    "Grams",
    "Modules",
    "Options",
    "Peer",
    "Score",
    "Problem",
    "find",
    "merge",
]
