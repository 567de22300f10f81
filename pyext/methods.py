"""The registry of research methods: objects that plugins offer in the entry-point group.

A plugin package declares, under ``[project.entry-points."pyext.methods"]``, one line per method:
``name = "package:METHOD"``. The module it names must be quick to import; what is heavy stays behind
the strings of `Method`, which are resolved when somebody runs the demo or a command.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pyext.errors import UserError, did_you_mean, one_line
from pyext.requirements import has_extra, missing_requirements

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
        # A lone string is a sequence too, of letters.
        if not isinstance(self.ops, tuple):
            raise ValueError(f"ops: expected a tuple of names, got {self.ops!r}")
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
    return [entry for name in names() for entry in entries_named(name)]


def entries_named(name: str) -> list[Entry]:
    """The entry of this name, or the several that dispute it; no other plugin is imported.

    Raises:
        MethodError: there is none.
    """
    points = sorted(entry_points(group=GROUP, name=name), key=_owner)
    if not points:
        known = ", ".join(names()) or "none"
        hint = did_you_mean(name, names())
        raise MethodError(f"no method {name!r}.{hint} Installed methods: {known}")
    if len({_owner(point) for point in points}) > 1:
        return list(_duplicates(name, points))
    return [_load(points[0])]


def get(name: str) -> Method:
    """The method ``name``, ready to be used.

    Raises:
        MethodError: there is no such method, or it is not ready.
    """
    entry = entries_named(name)[0]
    if entry.method is None or not entry.ready:
        mend = f". To mend it: {entry.mend}" if entry.mend else ""
        raise MethodError(f"method {name!r} cannot be used: {entry.problem}{mend}")
    return entry.method


def resolve(reference: str) -> Any:
    """The object that ``"module:object"`` names.

    Raises:
        MethodError: it does not load.
    """
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise MethodError(f"{reference} does not load: {one_line(error)}") from error


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
    # Whatever a plugin does at import must not disturb the others; ending the program included.
    except (Exception, SystemExit) as error:
        problem = f"{type(error).__name__}: {one_line(error)}"
        # Brings a requirement that is missing, or a version that works; touches nothing else.
        return Entry(point.name, owner, None, problem, f"pip install --upgrade {owner}")
    if not isinstance(method, Method):
        wanted = f"{point.value} is a {type(method).__name__}, not a pyext.methods.Method"
        return Entry(point.name, owner, None, wanted)
    if method.name != point.name:
        wanted = f"the method calls itself {method.name!r}, its entry point {point.name!r}"
        return Entry(point.name, owner, None, wanted)
    return Entry(point.name, owner, method, *_readiness(method, point.dist))


def _readiness(method: Method, distribution: Distribution | None) -> tuple[str | None, str | None]:
    """Why the method cannot run, and the command that mends it; None for what there is not."""
    unknown = sorted(set(method.ops) - set(op_families()))
    if unknown:
        problem = f"this pyext has no ops {', '.join(unknown)}"
        return problem, "pip install --upgrade pyext-kernels"
    if distribution is None:
        return None, None
    if method.extra is not None and not has_extra(distribution, method.extra):
        return f"{distribution.name} declares no extra {method.extra!r}", None
    try:
        missing = missing_requirements(distribution, method.extra)
    except ValueError as error:
        return f"its requirements cannot be read: {one_line(error)}", None
    if not missing:
        return None, None
    extra = f"[{method.extra}]" if method.extra else ""
    return f"missing: {', '.join(missing)}", f"pip install '{distribution.name}{extra}'"
