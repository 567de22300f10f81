"""Claims about the worst of many figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pyext.report import Claim


def quotient(over: float | None, under: float | None) -> float | None:
    return None if over is None or under is None else over / under


def worst(
    text: str, figures: Mapping[str, float | None], relation: Literal[">=", "<="], wanted: float
) -> Claim:
    """A claim on the worst of the figures, naming it; open where one is missing and none fails."""
    known = {name: figure for name, figure in figures.items() if figure is not None}
    missing = len(figures) - len(known)
    if not known:
        return Claim(text, None, relation, wanted)
    name = (min if relation == ">=" else max)(known, key=known.__getitem__)
    claim = Claim(f"{text}, worst of {len(known)}: {name}", known[name], relation, wanted)
    if missing and claim.held:
        return Claim(f"{text}, {missing} of {len(figures)} not measured", None, relation, wanted)
    return claim
