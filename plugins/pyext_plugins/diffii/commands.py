"""What the commands do, from options to results."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import diffusers
import transformers

from pyext.errors import UserError
from pyext.show import show_rows
from pyext_plugins.diffii import work
from pyext_plugins.diffii.images import read_folder
from pyext_plugins.diffii.loading import load_model
from pyext_plugins.diffii.manifest import NAME as MANIFEST
from pyext_plugins.diffii.manifest import Settings, load_manifest
from pyext_plugins.diffii.models import Model
from pyext_plugins.diffii.pool import NAME, Pool, load_pool


@dataclass(frozen=True)
class Options:
    """Which model, and how it is used; see `loading.load_model`."""

    model: Path
    prompt: str | None = None
    concepts: Path | None = None
    null_label: int | None = None
    embeddings: tuple[Path, ...] = ()
    lora: Path | None = None
    spacing: str = "trailing"
    dtype: str = "float32"
    threads: int | None = None

    def load(self, run: work.Run, classes: Sequence[str]) -> Model:
        return load_model(
            self.model,
            classes,
            device=run.state.device,
            dtype=self.dtype,
            spacing=self.spacing,
            prompt=self.prompt,
            concepts=self.concepts,
            null_label=self.null_label,
            embeddings=self.embeddings,
            lora=self.lora,
        )


def invert(data: Path, output: Path, options: Options, steps: int, batch: int) -> None:
    """Invert a folder of pictures.

    Raises:
        UserError: bad input.
        typer.Exit: with code 130, after Ctrl-C.
    """
    _check_batch(batch)
    folder = read_folder(data)
    with work.running(output, options.threads) as run, _one_line_each(run):
        model = options.load(run, folder.classes)
        model.check(folder.classes, 1.0, False)
        # Only inversion is meant here; with as many steps both directions meet.
        _set_steps(model, steps, steps)
        pool = work.invert(run, model, folder, steps, batch)
        _show_pool(run, pool)


def generate(inversions: Path, output: Path, options: Options, settings: Settings) -> None:
    """Generate images from inversions.

    Raises:
        UserError: bad input.
        typer.Exit: with code 130, after Ctrl-C.
    """
    pool = load_pool(inversions)
    with work.running(output, _threads(output, options)) as run, _one_line_each(run):
        model = options.load(run, pool.classes)
        _generate(run, model, pool, settings)


def augment(
    data: Path, output: Path, options: Options, inversion_steps: int, settings: Settings
) -> None:
    """Invert a folder of pictures and generate more of each class.

    Raises:
        UserError: bad input.
        typer.Exit: with code 130, after Ctrl-C.
    """
    folder = read_folder(data)
    lonely = [name for name, files in folder.files.items() if len(files) < 2]
    if lonely and settings.single != "noise":  # said before the long work, not after it
        raise UserError(
            f"class {lonely[0]!r} has 1 picture; circle interpolation needs 2; set single='noise' "
            "(--single noise)"
        )
    with work.running(output, _threads(output, options)) as run, _one_line_each(run):
        model = options.load(run, folder.classes)
        model.check(folder.classes, settings.guidance, bool(settings.suffixes))
        _set_steps(model, settings.steps, inversion_steps)
        pool = work.invert(run, model, folder, inversion_steps, settings.batch)
        _show_pool(run, pool)
        _generate(run, model, pool, settings)


def regenerate(inversions: Path, output: Path, options: Options, identity: str) -> None:
    """Make one image again.

    Raises:
        UserError: bad input.
        typer.Exit: with code 130, after Ctrl-C.
    """
    pool = load_pool(inversions)
    load_manifest(output / MANIFEST)
    with work.running(output) as run, _one_line_each(run):
        model = options.load(run, pool.classes)
        work.check_pool(pool, model)
        print(work.regenerate(run, model, pool, identity))


def _generate(run: work.Run, model: Model, pool: Pool, settings: Settings) -> None:
    model.check(pool.classes, settings.guidance, bool(settings.suffixes))
    work.check_pool(pool, model)
    _set_steps(model, settings.steps, int(pool.facts["steps"]))
    manifest = work.make_manifest(run, model, pool, settings)
    there, began = work.count_made(run, manifest), time.monotonic()
    work.generate(run, model, pool, manifest)
    work.report_generated(run, manifest, began, there)


def _set_steps(model: Model, steps: int, inversion_steps: int) -> None:
    try:
        model.set_steps(steps, inversion_steps)
    except ValueError as error:
        raise UserError(f"--{str(error).replace('_', '-', 1)}") from error


def _threads(output: Path, options: Options) -> int | None:
    """As asked for; or else as the images were made that are there already."""
    path = output / MANIFEST
    if options.threads is None and path.exists():
        found = load_manifest(path).facts.get("threads")
        return int(found) if found else None
    return options.threads


def _check_batch(batch: int) -> None:
    if not 1 <= batch <= 4096:
        raise UserError(f"--batch: expected 1 to 4096, got {batch}")


def _show_pool(run: work.Run, pool: Pool) -> None:
    if run.state.is_main_process:
        show_rows(work.pool_rows(pool), title=f"{len(pool.all)} inversions: {run.output / NAME}")


@contextmanager
def _one_line_each(run: work.Run) -> Iterator[None]:
    """Warnings as lines on stderr, by the first process alone; no bars of loading."""

    def show(message: Warning | str, *more: object) -> None:
        if run.state.is_main_process:
            print(f"warning: {message}", file=sys.stderr)

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield
