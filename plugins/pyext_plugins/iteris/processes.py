"""Several processes on one merger, as ``torchrun`` or ``accelerate launch`` start them.

Each job is done by one process as it would be done alone, and its result sent to all: the outcome
is the same to the bit on any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist

from pyext.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


@contextmanager
def joined() -> Iterator[int]:
    """Join the other processes, if the launcher started any; gives this one's number."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield number()
        return
    dist.init_process_group("gloo")
    try:
        yield number()
        # Nobody leaves while a thread of gloo still lets go of what was sent: at the end of the
        # interpreter that would abort the process.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def number() -> int:
    """Of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shared(jobs: Sequence[Job], work: Callable[[Job], Result]) -> Iterator[Result]:
    """The jobs' results in order, on every process; alone, one is done when it is asked for.

    Raises:
        UserError: a job raised it, on whichever process.
    """
    for start in range(0, len(jobs), count()):
        chunk = jobs[start : start + count()]
        own = _outcome(chunk[number()], work) if number() < len(chunk) else None
        for owner in range(len(chunk)):
            outcome = told(own, owner)
            if isinstance(outcome, UserError):
                raise outcome
            assert outcome is not None
            yield outcome[0]


def told(value: Result, owner: int = 0) -> Result:
    """The value that one process has, on all."""
    if count() == 1:
        return value
    box = [value if number() == owner else None]
    dist.broadcast_object_list(box, src=owner)
    return box[0]  # type: ignore[return-value]


def _outcome(job: Job, work: Callable[[Job], Result]) -> tuple[Result] | UserError:
    # An error must reach the others too: they would wait for a result.
    try:
        return (work(job),)
    except UserError as error:
        return error
