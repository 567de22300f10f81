"""What a demo or a benchmark leaves: rows, claims that can fail, pictures."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pyext.files import whole_file

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Claim:
    """A statement ``measured >= wanted`` or ``measured <= wanted``.

    ``measured`` is None where nothing was measured: the claim is then open, ``held`` is None.
    """

    text: str
    measured: float | None
    relation: Literal[">=", "<="]
    wanted: float

    @property
    def held(self) -> bool | None:
        if self.measured is None:
            return None
        if self.relation == ">=":
            return self.measured >= self.wanted
        return self.measured <= self.wanted

    def as_json(self) -> dict[str, Value]:
        # JSON has no word for what is not finite.
        finite = self.measured is None or math.isfinite(self.measured)
        return {
            "text": self.text,
            "measured": self.measured if finite else str(self.measured),
            "relation": self.relation,
            "wanted": self.wanted,
            "held": self.held,
        }


@dataclass(frozen=True)
class Report:
    """The result of a method's demo.

    Args:
        title: one line.
        rows: a table; the first row's keys are its columns.
        claims: what the demo set out to show.
        pictures: caption to file.
        facts: settings and figures that are neither rows nor claims.
    """

    title: str
    rows: list[dict[str, Value]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the report as JSON; pictures are named relative to the file's folder."""
        content = {
            "title": self.title,
            "facts": self.facts,
            "rows": self.rows,
            "claims": [claim.as_json() for claim in self.claims],
            "pictures": {
                caption: picture.relative_to(path.parent).as_posix()
                for caption, picture in self.pictures.items()
            },
        }
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")
