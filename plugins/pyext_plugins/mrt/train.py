"""The work of the command `train`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from pyext import environment
from pyext.errors import UserError
from pyext.files import make_output_folder
from pyext.report import Report, Value
from pyext.show import show_rows
from pyext_plugins.digest import digest
from pyext_plugins.memory import RESIDENT, SAVED
from pyext_plugins.mrt.config import MrtConfig
from pyext_plugins.mrt.model import MrtEditor
from pyext_plugins.mrt.samples import Reader, check_template, read_samples
from pyext_plugins.mrt.training import Settings, Training, evaluate
from pyext_plugins.progress import interruptible
from pyext_plugins.reft.files import CONFIG, WEIGHTS
from pyext_plugins.session import (
    REPORT,
    exit_interrupted,
    go_on,
    one_line_if_unwritable,
    refuse_files_of_others,
)

MIB = 2**20
LOSS = "loss {:.3f}"


def run(model: Path, data: Path, output: Path, config: MrtConfig, settings: Settings) -> Report:
    """Train the editors of a LLaVA model on the questions of a file.

    Raises:
        UserError: bad input.
        typer.Exit: with code 130, after Ctrl-C.
    """
    check_template(settings.template)
    found = read_samples(data)
    llava, tokenizer, processor = load_llava(model)
    base_digest = digest(llava)
    reader = Reader(
        tokenizer, processor, cast(Any, llava).config, settings.template, settings.max_length
    )
    samples = [reader.tokens(sample) for sample in found.samples]
    train, test = split(len(samples), settings.holdout, settings.seed)
    torch.manual_seed(settings.seed)
    try:
        editor = MrtEditor(llava, config)
    except ValueError as error:
        raise UserError(f"--model: the editors do not fit it: {error}") from error
    identity = {"data": found.digest, "model": base_digest, "config": str(config.as_json())}
    training = Training(llava, reader, [samples[k] for k in train], settings, identity)
    make_output_folder(output)
    refuse_files_of_others(output, (WEIGHTS, CONFIG))
    held_out = [samples[k] for k in test]
    with interruptible() as stopped, one_line_if_unwritable(output):
        go_on(training, training.steps, output, stopped, label="mrt", form=LOSS)
        editor.save_pretrained(output)
        if not training.done:
            exit_interrupted(training.step)
        with editor.disabled():
            before = evaluate(llava, reader, held_out)
        report = _report(training, editor, before, evaluate(llava, reader, held_out), len(test))
        report.save(output / REPORT)
    show_rows(report.rows, title=report.title)
    print(f"memory: {report.facts['memory']}")
    print(f"{output / WEIGHTS}: editors of {model}, final loss {training.loss_seen:.4f}")
    return report


def _report(
    training: Training, editor: MrtEditor, before: float, after: float, tested: int
) -> Report:
    memory = training.measure()
    resident = memory.resident
    total = sum(own.numel() for own in editor.model.parameters())
    largest = max(training.tokens(number) for number in range(len(training.batches)))
    row: dict[str, Value] = {
        "trained parameters": editor.trained,
        "of all (%)": round(100 * editor.trained / total, 4),
        "loss in training": round(training.loss_seen, 4),
        "loss held out, untouched": round(before, 4),
        "loss held out": round(after, 4),
        "saved for backward (MiB)": round(memory.saved / MIB, 2),
        "peak resident (MiB)": None if resident is None else round(resident / MIB),
        "samples/s": round(training.samples_per_second, 1),
    }
    trained = sum(map(len, training.batches))
    return Report(
        title=f"{trained} samples trained on, {tested} held out",
        rows=[row],
        facts={
            "settings": {**editor.config.as_json(), **asdict(training.settings)},
            "loss": "cross-entropy in nats over the tokens of the answers; in training of late, "
            "a mean that forgets",
            "memory": f"of one step at the largest batch, {largest} tokens; {SAVED}; {RESIDENT}",
            "samples/s": "of the training steps alone, on this machine as it was; a resumed "
            "training counts all its steps",
            "environment": environment.describe(),
        },
    )


def split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the samples to train on, and of those held out: at least one of each."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = min(max(round(share * count), 1), count - 1)
    return sorted(order[held_out:]), sorted(order[:held_out])


def load_llava(path: Path) -> tuple[nn.Module, Any, Any]:
    """The model in a local folder, in the type it is kept in, its tokenizer and its reader of
    pictures; nothing is fetched.

    Raises:
        UserError: the folder holds no LLaVA model.
    """
    if not path.is_dir():
        raise UserError(f"--model: expected a folder with a LLaVA model, got {path}")
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoTokenizer,
        LlavaForConditionalGeneration,
    )
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    local: dict[str, Any] = {"local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(path, **local)
        if config.model_type != "llava":
            raise UserError(
                f"--model: expected a LLaVA model, {path} is of type {config.model_type}"
            )
        model = LlavaForConditionalGeneration.from_pretrained(path, dtype="auto", **local)
        tokenizer = AutoTokenizer.from_pretrained(path, **local)
        processor = AutoImageProcessor.from_pretrained(path, **local)
    except UserError:
        raise
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--model: {path} cannot be loaded: {reason}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return cast(Any, model).to(device), tokenizer, processor
