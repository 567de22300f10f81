"""The progress bar, and Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(
    label: str,
    total: int,
    done: int = 0,
    figure: float | None = None,
    form: str = "PSNR {:.2f} dB",
) -> Iterator[Callable[[int, float | None], None]]:
    """A bar on stderr; gives the function that moves it to a step and shows a figure, if any."""

    def text(figure: float | None) -> str:
        return "" if figure is None else form.format(figure)

    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=done, shown=text(figure))

        def move(done: int, figure: float | None = None) -> None:
            bar.update(task, completed=done, shown=text(figure))

        yield move


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C was pressed; a second Ctrl-C is not held back."""
    pressed = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
