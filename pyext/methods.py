"""The registry of research methods: objects that plugins offer in the entry-point group.

A plugin package declares, under ``[project.entry-points."pyext.methods"]``, one line per method:
``name = "package:METHOD"``. The module it names must be quick to import; what is heavy stays behind
the strings of `Method`, which are resolved when somebody runs the demo or a command.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pyext.errors import UserError
from pyext.requirements import missing_requirements

GROUP = "pyext.methods"

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Method:
    """A research method, as its plugin describes it.

    Args:
        name: as on the command line; the entry point's name: lower-case words joined by hyphens.
        summary: one line.
        paper: the citation, or where to read about it.
        ops: op families it stands on, modules of `pyext.ops`.
        extra: the extra of the plugin's distribution that brings what the method needs.
        demo: ``"module:function"``; the function takes an output folder (`pathlib.Path`) and
            returns a `pyext.report.Report`.
        commands: ``"module:app"``, a `typer.Typer` mounted as ``pyext NAME``.

    Raises:
        ValueError: a field is not of this form; the message names it.
    """

    name: str
    summary: str
    paper: str
    ops: tuple[str, ...]
    extra: str | None = None
    demo: str | None = None
    commands: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name: expected lower-case words joined by hyphens, got {self.name!r}"
            )
        if not self.summary or "\n" in self.summary:
            raise ValueError(f"summary: expected one line, got {self.summary!r}")
        for field in ("demo", "commands"):
            value = getattr(self, field)
            if value is not None and not _REFERENCE.fullmatch(value):
                raise ValueError(f"{field}: expected 'module:object', got {value!r}")


@dataclass(frozen=True)
class Entry:
    """One entry point of the group, whether it works or not.

    ``problem`` says in a sentence why the method cannot be used, ``mend`` the one command that
    changes that; both are None for a method that is ready. ``method`` is None where the plugin
    does not load.
    """

    name: str
    distribution: str
    method: Method | None
    problem: str | None = None
    mend: str | None = None

    @property
    def ready(self) -> bool:
        return self.problem is None


class MethodError(UserError):
    """A method is unknown or cannot be used; the message says what helps."""


def op_families() -> list[str]:
    """Names of the op families, the public modules of `pyext.ops`; torch is not imported."""
    ops = Path(__file__).parent / "ops"
    return sorted(file.stem for file in ops.glob("*.py") if not file.stem.startswith("_"))


def names() -> list[str]:
    """Names in the entry-point group, sorted; no plugin is imported."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def entries() -> list[Entry]:
    """All entries of the group, sorted by name. A plugin that fails is an entry with a problem."""
    return [entry for name in names() for entry in _entries_of(name)]


def get(name: str) -> Method:
    """The method ``name``, ready to be used.

    Raises:
        MethodError: there is no such method, or it is not ready.
    """
    found = _entries_of(name)
    if not found:
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        known = ", ".join(names()) or "none"
        raise MethodError(f"no method {name!r}.{hint} Installed methods: {known}")
    entry = found[0]
    if entry.method is None or not entry.ready:
        mend = f". To mend it: {entry.mend}" if entry.mend else ""
        raise MethodError(f"method {name!r} cannot be used: {entry.problem}{mend}")
    return entry.method


def resolve(reference: str) -> Any:
    """The object that ``"module:object"`` names."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _entries_of(name: str) -> list[Entry]:
    points = sorted(entry_points(group=GROUP, name=name), key=_owner)
    if len({_owner(point) for point in points}) > 1:
        return list(_duplicates(name, points))
    return [_load(point) for point in points[:1]]


def _owner(point: EntryPoint) -> str:
    return str(point.dist.name) if point.dist else "an unnamed distribution"


def _duplicates(name: str, points: list[EntryPoint]) -> Iterator[Entry]:
    """None of several plugins of one name is chosen for the user."""
    owners = sorted({_owner(point) for point in points})
    for owner in owners:
        others = " and ".join(other for other in owners if other != owner)
        yield Entry(name, owner, None, f"{others} also offers it", f"pip uninstall {owners[-1]}")


def _load(point: EntryPoint) -> Entry:
    owner = _owner(point)
    try:
        method = point.load()
    except Exception as error:  # whatever a plugin does at import must not disturb the others
        return Entry(point.name, owner, None, f"{type(error).__name__}: {error}", _reinstall(owner))
    if not isinstance(method, Method):
        wanted = f"{point.value} is a {type(method).__name__}, not a pyext.methods.Method"
        return Entry(point.name, owner, None, wanted)
    if method.name != point.name:
        wanted = f"the method calls itself {method.name!r}, its entry point {point.name!r}"
        return Entry(point.name, owner, None, wanted)
    problem, mend = _readiness(method, point.dist)
    return Entry(point.name, owner, method, problem, mend)


def _reinstall(owner: str) -> str:
    return f"pip install --force-reinstall {owner}"


def _readiness(method: Method, distribution: Distribution | None) -> tuple[str | None, str | None]:
    unknown = sorted(set(method.ops) - set(op_families()))
    if unknown:
        problem = f"this pyext has no ops {', '.join(unknown)}"
        return problem, "pip install --upgrade pyext-kernels"
    if distribution is None or method.extra is None:
        return None, None
    missing = missing_requirements(distribution, method.extra)
    if not missing:
        return None, None
    return f"missing: {', '.join(missing)}", f"pip install '{distribution.name}[{method.extra}]'"
