"""The work of the commands: invert a folder of pictures, generate what a manifest lists.

Both go batch by batch, and what is on disk is not made again. Of several processes, started by
`accelerate launch`, each takes its share of the batches; these are the same, and so are the bytes.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
import typer
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyext.errors import UserError
from pyext.files import make_output_folder, whole_file
from pyext.report import Report, Value
from pyext.runtime import use_threads
from pyext.show import show_rows
from pyext_plugins.diffii import manifest as manifests
from pyext_plugins.diffii.images import PictureFolder, load_square
from pyext_plugins.diffii.manifest import Image, Manifest, Settings
from pyext_plugins.diffii.models import Guide, Model, Tick
from pyext_plugins.diffii.pool import FACTS, NAME, Pool, load_pool, save_pool
from pyext_plugins.diffii.schedule import scheduler_text
from pyext_plugins.picture import save_png
from pyext_plugins.progress import interruptible, progress_bar
from pyext_plugins.session import INTERRUPTED, REPORT, one_line_if_unwritable

IMAGES, PARTS = "images", "parts"
Item = TypeVar("Item")


class Interrupted(Exception):
    """Ctrl-C was pressed; what is on disk is whole."""


@dataclass(frozen=True)
class Run:
    """Who works, and where.

    Args:
        state: this process among all.
        output: folder for the results.
        stopped: whether Ctrl-C was pressed.
    """

    state: PartialState
    output: Path
    stopped: Callable[[], bool]

    def share(self, batches: Sequence[Item]) -> list[tuple[int, Item]]:
        """The batches of this process, with their numbers."""
        numbered = list(enumerate(batches))
        return numbered[self.state.process_index :: self.state.num_processes]

    @contextmanager
    def progress(self, label: str, batches: int, steps: int) -> Iterator[Tick]:
        """The first process's bar over its steps; gives what to call after each step.

        The call raises `Interrupted` after Ctrl-C.
        """
        done = 0
        no_bar = nullcontext(lambda done, figure: None)
        bar = progress_bar(label, batches * steps) if self.state.is_main_process else no_bar
        with bar as move:

            def tick() -> None:
                nonlocal done
                done += 1
                move(done, None)
                if self.stopped():
                    raise Interrupted

            yield tick


@contextmanager
def running(output: Path, threads: int | None = None) -> Iterator[Run]:
    """Surround the work of a command: Ctrl-C ends it with code 130, a full disk with one line.

    Args:
        threads: to compute on; None for as many as torch takes.

    Raises:
        UserError: the number of threads is below 1.
    """
    if threads is not None and threads < 1:
        raise UserError(f"--threads: expected at least 1, got {threads}")
    make_output_folder(output)
    with on_threads(threads), interruptible() as stopped, one_line_if_unwritable(output):
        try:
            yield Run(PartialState(cpu=not torch.cuda.is_available()), output, stopped)
        except Interrupted:
            print("interrupted; the same command goes on", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None


def on_threads(threads: int | None) -> AbstractContextManager[None]:
    """Compute on this many threads inside a ``with`` block; None for as many as torch takes."""
    return nullcontext() if threads is None else use_threads(threads)


def invert(run: Run, model: Model, folder: PictureFolder, steps: int, batch: int) -> Pool:
    """Invert all pictures of a folder; write inversions.safetensors.

    Args:
        model: with its steps set; ``steps`` says how many.
        batch: pictures inverted together.

    Raises:
        UserError: the output folder holds inversions of something else, or a picture cannot be
            read.
    """
    facts = {
        "model": model.digest(),
        "scheduler": scheduler_text(model.scheduler),
        "steps": steps,
        "conditions": {name: model.condition(name) for name in folder.classes},
        "files": folder.files,
        "pictures": folder.digest(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "batch": batch,
    }
    path = run.output / NAME
    if path.exists():
        pool = load_pool(path, "--output")
        _same_facts(path, pool.facts, facts)
        return pool
    entries = folder.entries()
    batches = [entries[i : i + batch] for i in range(0, len(entries), batch)]
    parts = Parts(run.output / PARTS, facts)
    missing = [(k, own) for k, own in run.share(batches) if not parts.has(k)]
    with run.progress("inverting", len(missing), steps) as tick:
        for number, own in missing:
            pictures = [
                load_square(folder.path(*entry), model.size, model.channels) for entry in own
            ]
            names = [name for name, _ in own]
            x = model.invert(model.encode(torch.stack(pictures)), names, tick)
            parts.save(number, x)
    run.state.wait_for_everyone()
    if run.state.is_main_process:
        x = torch.cat([parts.load(number) for number in range(len(batches))])
        counts = [len(files) for files in folder.files.values()]
        tensors = dict(zip(folder.files, x.split(counts), strict=True))
        save_pool(Pool(tensors, facts), path)
        parts.remove()
    run.state.wait_for_everyone()
    return load_pool(path)


class Parts:
    """Inverted batches, each a file, until all are there.

    Raises:
        UserError: the folder holds parts of something else.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        index, text = folder / "facts.json", json.dumps(facts, sort_keys=True)
        if index.exists():
            _same_facts(folder, json.loads(index.read_text()), json.loads(text))
        else:
            with whole_file(index) as temporary:
                temporary.write_text(text)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def has(self, number: int) -> bool:
        return self._path(number).exists()

    def save(self, number: int, x: Tensor) -> None:
        with whole_file(self._path(number)) as temporary:
            save_file({"x": x.cpu().contiguous()}, temporary)

    def load(self, number: int) -> Tensor:
        try:
            return load_file(self._path(number))["x"]
        except (SafetensorError, KeyError) as error:
            raise UserError(f"--output: {self._path(number)} cannot be read: {error}") from error

    def remove(self) -> None:
        shutil.rmtree(self.folder)


def _same_facts(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in FACTS:
        if found.get(name) != json.loads(json.dumps(wanted[name])):
            raise UserError(
                f"--output: {path} holds inversions with other {name}; choose another folder"
            )


def check_pool(pool: Pool, model: Model) -> None:
    """Whether inversions are of this model.

    Raises:
        UserError: they are of other weights, dtype or noise levels.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    own = {
        "model": model.digest(),
        "dtype": dtype,
        "scheduler": json.loads(json.dumps(scheduler_text(model.scheduler))),
    }
    for name, value in own.items():
        if pool.facts[name] != value:
            found, wanted = (str(v) for v in (pool.facts[name], value))
            if name == "scheduler":
                keys = [k for k in value if value[k] != pool.facts[name].get(k)]
                found = ", ".join(f"{k} {pool.facts[name].get(k)}" for k in keys)
                wanted = ", ".join(f"{k} {value[k]}" for k in keys)
            raise UserError(
                f"--inversions: expected those of this model, with {name} {wanted[:80]}, got "
                f"{found[:80]}"
            )


def make_manifest(run: Run, model: Model, pool: Pool, settings: Settings) -> Manifest:
    """The list of images, and write it; or, if it is there already, see that it is the same.

    Raises:
        UserError: the output folder holds images of something else.
    """
    names = ("torch", "diffusers", "pillow", "pyext-kernels", "pyext-plugins")
    facts = {
        "model": pool.facts["model"],
        "inversions": pool.digest,
        "device": model.device.type,
        "threads": torch.get_num_threads() if model.device.type == "cpu" else None,
        "versions": {name: version(name) for name in names},
    }
    found = manifests.plan(pool, settings, facts)
    path = run.output / manifests.NAME
    if path.exists():
        other = manifests.difference(manifests.load_manifest(path), found)
        if other is not None:
            raise UserError(f"--output: {path} lists images with {other}; choose another folder")
    elif (run.output / IMAGES).exists():
        raise UserError(
            f"--output: {run.output} already holds {IMAGES}, which are not of this command; choose "
            "another folder"
        )
    run.state.wait_for_everyone()
    if run.state.is_main_process:
        for name in pool.classes:
            folder = run.output / IMAGES / name
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".*.png"):  # of a process that was killed as it wrote
                left.unlink()
        found.save(path)
    run.state.wait_for_everyone()
    return found


def generate(run: Run, model: Model, pool: Pool, manifest: Manifest) -> None:
    """Make all images of a manifest that are not there yet.

    Args:
        model: with its steps set.
    """
    missing = [
        (number, batch)
        for number, batch in run.share(manifest.batches())
        if not all(_path(run.output, image).exists() for image in batch)
    ]
    with run.progress("generating", len(missing), manifest.settings.steps) as tick:
        for _, batch in missing:
            pictures = make_batch(model, pool, manifest.settings, batch, tick)
            for image, picture in zip(batch, pictures, strict=True):
                save_png(_path(run.output, image), picture)
    run.state.wait_for_everyone()


def regenerate(run: Run, model: Model, pool: Pool, identity: str) -> Path:
    """Make one image of the manifest in the output folder again, with the batch it belongs to.

    Returns:
        Its file, which is overwritten if it is there.

    Raises:
        UserError: there is no manifest, it lists no such image, or it is of other inversions,
            versions or device.
    """
    manifest = manifests.load_manifest(run.output / manifests.NAME)
    batch = manifest.batch_of(identity)
    settings, threads = manifest.settings, manifest.facts["threads"]
    if manifest.facts["inversions"] != pool.digest:
        raise UserError(f"--inversions: {run.output} has images of other inversions")
    if manifest.facts["device"] != model.device.type:
        raise UserError(
            f"--only: the images were made on {manifest.facts['device']}, this is "
            f"{model.device.type}: their bytes would differ"
        )
    for name, wanted in manifest.facts["versions"].items():
        if version(name) != wanted:
            print(
                f"{name}: the images were made by {wanted}, this is {version(name)}; bytes may "
                "differ",
                file=sys.stderr,
            )
    with on_threads(threads), run.progress("generating", 1, settings.steps) as tick:
        model.set_steps(settings.steps, int(pool.facts["steps"]))
        pictures = make_batch(model, pool, settings, batch, tick)
    place = next(k for k, image in enumerate(batch) if image.id == identity)
    path = _path(run.output, batch[place])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(path, pictures[place])
    return path


def make_batch(
    model: Model, pool: Pool, settings: Settings, batch: Sequence[Image], tick: Tick
) -> Tensor:
    """The pictures of a batch of a manifest, uint8, [B, H, W, 3]."""
    guide = Guide(
        [image.label for image in batch],
        [image.suffix for image in batch],
        settings.suffix_fraction,
        settings.guidance,
    )
    return model.generate(manifests.starting_points(pool, batch, settings.norm), guide, tick)


def _path(output: Path, image: Image) -> Path:
    return output / IMAGES / f"{image.id}.png"


def pool_rows(pool: Pool) -> list[dict[str, Value]]:
    """A table of the inversions: how long they are, and how they lie to each other."""
    rows: list[dict[str, Value]] = []
    for name, tensor in pool.tensors.items():
        x = tensor.double().flatten(1)
        units = torch.nn.functional.normalize(x, dim=1)
        first, second = torch.triu_indices(len(x), len(x), 1)
        cosines = (units @ units.T)[first, second]
        length = float(x.norm(dim=1).mean()) / math.sqrt(x.shape[1])
        rows.append(
            {
                "class": name,
                "inversions": len(x),
                "|I|/sqrt(D)": round(length, 4),
                "cosine of two, mean": round(float(cosines.mean()), 4) if len(cosines) else None,
                "largest": round(float(cosines.max()), 4) if len(cosines) else None,
            }
        )
    return rows


def manifest_rows(manifest: Manifest) -> list[dict[str, Value]]:
    """A table of the images: how many of each class, and where they started."""
    rows: list[dict[str, Value]] = []
    for name in dict.fromkeys(image.label for image in manifest.images):
        own = [image for image in manifest.images if image.label == name]
        ratios = [image.norms[-1] for image in own]
        rows.append(
            {
                "class": name,
                "images": len(own),
                "of noise": sum(image.seed is not None for image in own),
                "|Z|/sqrt(D), mean": round(sum(ratios) / len(ratios), 4),
            }
        )
    return rows


def report_generated(run: Run, manifest: Manifest, began: float, there_before: int) -> None:
    """Show and write what was made; by the first process alone."""
    if not run.state.is_main_process:
        return
    made = len(manifest.images) - there_before
    seconds = time.monotonic() - began
    facts = {"images made by this run": made, "seconds": round(seconds, 1), **manifest.facts}
    title = f"{len(manifest.images)} images, batches of {manifest.settings.batch}"
    report = Report(title, manifest_rows(manifest), facts=facts)
    report.save(run.output / REPORT)
    show_rows(report.rows, title=title)
    rate = f", {made / seconds:.2f} a second" if made else ""
    print(f"{run.output / IMAGES}: {made} images made{rate}")


def count_made(run: Run, manifest: Manifest) -> int:
    """How many images of a manifest are there."""
    return sum(_path(run.output, image).exists() for image in manifest.images)
