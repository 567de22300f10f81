"""What a comparison keeps of each method, so that it can go on where it was left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pyext.errors import UserError
from pyext.files import whole_file

INPUTS, RECORDS, ADAPTERS = "inputs.json", "records", "adapters"


@dataclass(frozen=True)
class Record:
    """Of one method.

    Args:
        scores: by task.
        rank: the largest of the result; None where nothing was merged.
        seconds: that merging took; None as well.
        skipped: why there is no result; there are no scores then.
    """

    scores: dict[str, float]
    rank: int | None = None
    seconds: float | None = None
    skipped: str | None = None


class Records:
    """A folder of them.

    Args:
        folder: of the comparison, which exists.
        inputs: what makes this comparison: the folder must not hold another one.

    Raises:
        UserError: it does, or a file in it cannot be read.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, str]) -> None:
        self.folder = folder
        path = folder / INPUTS
        if path.exists():
            own = _read(path)
            changed = [key for key in inputs if own.get(key) != inputs[key]]
            if changed:
                raise UserError(
                    f"--output: {folder} holds a comparison of other inputs ({changed[0]}); choose "
                    "another folder"
                )
        else:
            taken = [file.name for file in folder.iterdir()]
            if taken:
                raise UserError(
                    f"--output: {folder} already holds {sorted(taken)[0]}, which is not of a "
                    "comparison; choose another folder"
                )
            _write(path, inputs)
        (folder / RECORDS).mkdir(exist_ok=True)

    def find(self, method: str) -> Record | None:
        """Of a method, if it is done."""
        path = self._path(method)
        return Record(**_read(path)) if path.exists() else None  # type: ignore[arg-type]

    def keep(self, method: str, record: Record) -> None:
        """A method is done."""
        _write(self._path(method), asdict(record))

    def adapter(self, method: str) -> Path:
        """Where the adapter of a method that is not done is written; one that is there goes."""
        folder = self.folder / ADAPTERS / method
        if folder.exists():
            shutil.rmtree(folder)
        return folder

    def _path(self, method: str) -> Path:
        return self.folder / RECORDS / f"{method.replace('/', '_')}.json"


def _read(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--output: {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"--output: {path}: expected a JSON object")
    return content


def _write(path: Path, content: Mapping[str, object]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(dict(content), indent=2) + "\n")
