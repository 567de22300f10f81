"""The header of a `.ply` file: where its vertices begin, and what one consists of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pyext.errors import UserError

BYTE_ORDERS = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}
TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
LONGEST_LINE = 4096  # bytes; a file that is no .ply may be one long line
MOST_LINES = 10_000


@dataclass(frozen=True)
class Header:
    """What `read_header` finds.

    Args:
        format: ascii, binary_little_endian or binary_big_endian.
        offset: bytes before the vertices; in an ascii file, before all elements.
        skip: in an ascii file, how many lines of other elements come before the vertices.
        count: of vertices.
        vertex: the properties of one, in order.
    """

    format: str
    offset: int
    skip: int
    count: int
    vertex: np.dtype


@dataclass
class _Element:
    name: str
    count: int
    properties: dict[str, str] = field(default_factory=dict)
    has_lists: bool = False


def read_header(file: BinaryIO, path: Path) -> Header:
    """Read from the start of a file; ``path`` is for messages.

    Raises:
        UserError: not a `.ply`, or one without vertices of a fixed size.
    """
    if file.readline(LONGEST_LINE).strip() != b"ply":
        raise UserError(f"{path}: expected a .ply file, which begins with a line 'ply'")
    form = ""
    elements: list[_Element] = []
    for words in _lines(file, path):
        match words:
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", name, _] if name in BYTE_ORDERS:
                form = name
            case ["element", name, number] if number.isdecimal():
                elements.append(_Element(name, int(number)))
            case ["property", "list", kind, item, _] if elements and {kind, item} <= {*TYPES}:
                elements[-1].has_lists = True
            case ["property", kind, name] if (
                elements and kind in TYPES and name not in elements[-1].properties
            ):
                elements[-1].properties[name] = TYPES[kind]
            case _:
                line = " ".join(words)[:80]
                raise UserError(f"{path}: a line of its header is not understood: {line!r}")
    if not form:
        raise UserError(f"{path}: its header names no format")
    return _locate_vertices(elements, form, file.tell(), path)


def _lines(file: BinaryIO, path: Path) -> list[list[str]]:
    """The words of the header's lines up to its end."""
    lines: list[list[str]] = []
    while len(lines) < MOST_LINES:
        line = file.readline(LONGEST_LINE)
        if not line.endswith(b"\n"):
            break
        words = line.decode("latin-1").split()
        if words == ["end_header"]:
            return lines
        lines.append(words)
    raise UserError(f"{path}: its header has no end: cut off, or not a .ply file")


def _locate_vertices(elements: list[_Element], form: str, offset: int, path: Path) -> Header:
    skip = 0
    for element in elements:
        if element.has_lists and (element.name == "vertex" or form != "ascii"):
            raise UserError(
                f"{path}: element {element.name!r} has lists, expected vertices of a fixed size "
                "with nothing of varying size before them"
            )
        order = BYTE_ORDERS[form]
        layout = np.dtype([(name, order + kind) for name, kind in element.properties.items()])
        if element.name == "vertex":
            return Header(form, offset, skip, element.count, layout)
        skip += element.count
        if form != "ascii":
            offset += element.count * layout.itemsize
    raise UserError(f"{path}: it has no vertices: not a Gaussian scene")
