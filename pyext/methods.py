"""The registry of research methods: objects that plugins offer in the entry-point group.

A plugin package declares, under ``[project.entry-points."pyext.methods"]``, one line per method:
``name = "package:METHOD"``. The module it names must be quick to import; what is heavy stays behind
the strings of `Method`, which are resolved when somebody runs the demo or a command.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUP = "pyext.methods"


@dataclass(frozen=True)
class Method:
    """A research method, as its plugin describes it.

    Args:
        name: as on the command line; the entry point's name.
        summary: one line.
        paper: the citation, or where to read about it.
        ops: op families it stands on, modules of `pyext.ops`.
        extra: the extra of the plugin's distribution that brings what the method needs.
        demo: ``"module:function"``; the function takes an output folder (`pathlib.Path`) and
            returns a `pyext.report.Report`.
        commands: ``"module:app"``, a `typer.Typer` mounted as ``pyext NAME``.
    """

    name: str
    summary: str
    paper: str
    ops: tuple[str, ...]
    extra: str | None = None
    demo: str | None = None
    commands: str | None = None
