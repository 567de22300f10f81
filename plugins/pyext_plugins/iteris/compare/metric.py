"""The user's own metric, a function in a Python file of theirs."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyext.errors import UserError, did_you_mean, one_line
from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.applied import applied

Scores = dict[str, float]


class Metric:
    """Scores of a model by task, larger is better.

    Args:
        reference: ``FILE.py:function``; the function takes model and tokenizer, and gives a dict of
            task name to number. The file is run.

    Raises:
        UserError: there is no such file or function, or the file does not run.
    """

    def __init__(self, reference: str) -> None:
        file, _, name = reference.rpartition(":")
        if not file or not name:
            raise UserError(f"--metric: expected FILE.py:function, got {reference!r}")
        self.path, self.reference = Path(file), reference
        self._function = _load(self.path, name)
        self._tasks: list[str] | None = None

    def __call__(self, model: nn.Module, tokenizer: Any, modules: Mapping[str, LowRank]) -> Scores:
        """Of a model under updates, which are taken off again.

        Raises:
            UserError: the function fails, or does not give numbers of the same tasks each time.
        """
        try:
            with applied(model, modules), torch.no_grad():
                found = self._function(model, tokenizer)
        except Exception as error:
            problem = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"--metric: {self.reference} fails: {problem}") from error
        return self._checked(found)

    def _checked(self, found: object) -> Scores:
        if not isinstance(found, dict) or not found:
            raise UserError(
                f"--metric: expected {self.reference} to return a dict of task name to number, got "
                f"{one_line(repr(found))[:80]}"
            )
        scores = {}
        for task, value in found.items():
            try:
                scores[str(task)] = float(value)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"--metric: {self.reference}: {task}: expected a number, got {value!r}"
                ) from error
            if not math.isfinite(scores[str(task)]):
                raise UserError(f"--metric: {self.reference}: {task}: {value} is not finite")
        self._tasks = self._tasks or list(scores)
        if set(self._tasks) != set(scores):
            raise UserError(
                f"--metric: {self.reference}: expected the same tasks each time, "
                f"{', '.join(self._tasks)}; got {', '.join(scores)}"
            )
        return scores


def _load(path: Path, name: str) -> Callable[[Any, Any], object]:
    if not path.is_file():
        raise UserError(f"--metric: expected a Python file, {path} is not a file")
    spec = importlib.util.spec_from_file_location(f"pyext_metric_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--metric: expected a Python file, got {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        problem = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"--metric: {path} does not run: {problem}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [own for own, value in vars(module).items() if callable(value)]
        raise UserError(f"--metric: {path} has no function {name!r}.{did_you_mean(name, known)}")
    return function
