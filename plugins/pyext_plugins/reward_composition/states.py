"""States of weights: to files and back, and to other rewards."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyext.files import whole_file
from pyext_plugins.reward_composition import checks

KEYS = (
    *("names", "mode", "lambda", "step", "log_w", "bias", "floor", "cap", "smoothing", "decay"),
    *("scaling", "patience", "means", "smoothed", "moments", "constant", "constant_steps"),
)


def write(path: Path, state: Mapping[str, Any]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(state, indent=2, allow_nan=False) + "\n")


def read(path: Path) -> dict[str, Any]:
    """The state in a file that `RewardWeights.save` wrote.

    Raises:
        ValueError: there is no such file, or it is not one of these.
    """
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"path: expected a file of saved weights, {path}: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"path: expected a JSON object, {path} has another value")
    check(state)
    return state


def check(state: Mapping[str, Any]) -> None:
    """Refuse a state that is not whole.

    Raises:
        ValueError: a key is missing, or a value is not one that `state_dict` gives.
    """
    missing = [key for key in KEYS if key not in state]
    if missing:
        raise ValueError(f"state: expected keys as of state_dict, without {', '.join(missing)}")
    try:
        count = len(checks.names(state["names"]))
        log_w = torch.tensor(state["log_w"], dtype=torch.float64)
        if checks.log_weights(log_w) != count:
            raise ValueError(f"log_w: expected {count} values, got {len(log_w)}")
        checks.all_finite("log_w", log_w)
        checks.step_sizes(state["lambda"], count)
        if not isinstance(state["step"], int) or state["step"] < 0:
            raise ValueError(f"step: expected a whole number from 0, got {state['step']!r}")
        lists = {key: state[key] for key in ("means", "smoothed", "constant", "constant_steps")}
        lists |= {f"moments {key}": state["moments"][key] for key in ("counts", "means", "squares")}
        for name, values in lists.items():
            if from_list(values).shape != (count,):
                raise ValueError(f"{name}: expected {count} values, got {len(values)}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"state: {error}") from error


def places(names: Sequence[str], saved: Sequence[str], other_names: str) -> list[int | None]:
    """Where in the state each of the names is; None for one that is new.

    Raises:
        ValueError: they are not the same rewards and ``other_names`` is "refuse".
    """
    new = [name for name in names if name not in saved]
    gone = [name for name in saved if name not in names]
    if (new or gone) and other_names == "refuse":
        raise ValueError(
            f"state: of other rewards ({_difference(new, gone)}); other_names='renormalize' gives "
            "each new one 1/n and shares the rest among the others"
        )
    return [saved.index(name) if name in saved else None for name in names]


def mixed(log_w: Tensor, there: Sequence[int | None]) -> Tensor:
    """Weights for the rewards at these places of saved ones; None, a new reward, gets 1/n."""
    result = torch.full((len(there),), -math.log(len(there)), dtype=torch.float64)
    kept = [number for number, place in enumerate(there) if place is not None]
    source = [place for place in there if place is not None]
    if len(source) == len(there) == len(log_w):
        return log_w[source]
    if kept:
        found = log_w[source]
        result[kept] = found - found.logsumexp(0) + math.log(len(kept) / len(there))
    return result


def to_list(values: Tensor) -> list[float | None]:
    """Numbers for JSON, which has none that is not a number."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def from_list(values: Sequence[float | None]) -> Tensor:
    found = [math.nan if value is None else value for value in values]
    return torch.tensor(found, dtype=torch.float64)


def _difference(new: Sequence[str], gone: Sequence[str]) -> str:
    parts = [
        f"{kind} {', '.join(names)}" for kind, names in (("new:", new), ("gone:", gone)) if names
    ]
    return "; ".join(parts)
