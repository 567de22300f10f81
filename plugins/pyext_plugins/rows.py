"""Rows of text files, with errors that name the option and the line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyext.errors import UserError

Row = dict[str, Any]


def read_text(option: str, path: Path) -> tuple[str, str]:
    """A file's text and its SHA-256.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig"), hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{option}: {path} is not UTF-8 text: {error}") from error


def csv_rows(option: str, path: Path, text: str) -> tuple[list[str], Iterator[tuple[int, Row]]]:
    """The columns of a CSV file (or, called .tsv, one with tabs), and its rows with their lines.

    Raises:
        UserError: the file is no such table; in part only when its rows are asked for.
    """
    csv.field_size_limit(2**31 - 1)
    lines = io.StringIO(text, newline="")
    rows = csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")
    return list(rows.fieldnames or []), _numbered(option, path, rows)


def _numbered(option: str, path: Path, rows: csv.DictReader[str]) -> Iterator[tuple[int, Row]]:
    try:
        for row in rows:
            yield rows.line_num, dict(row)
    except csv.Error as error:
        raise UserError(f"{option}: {path}, line {rows.line_num}: {error}") from error


def json_rows(option: str, path: Path, text: str) -> Iterator[tuple[int, Row]]:
    """The objects of a JSON Lines file, with their lines; empty lines are left.

    Raises:
        UserError: a line is something else.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{option}: {path}, line {number}"
        try:
            content = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: expected JSON: {error}") from error
        if not isinstance(content, dict):
            raise UserError(f"{where}: expected an object, got {str(content)[:40]}")
        yield number, content
