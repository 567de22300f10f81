"""`pyext list` and `pyext info`: the installed methods, and what those that cannot run lack."""

from __future__ import annotations

from collections.abc import Sequence

from pyext import methods
from pyext.cli.options import Name


def list_methods() -> None:
    """List the installed methods: what each is, and whether it can run."""
    from pyext.show import show_rows

    found = methods.entries()
    if not found:
        print("No methods are installed. The project's own: pip install 'pyext-plugins[all]'")
    show_rows([_facts(entry) for entry in found])
    _show_problems(found)


def _show_problems(entries: Sequence[methods.Entry]) -> None:
    """Below the table and as plain lines: a command is there to be copied."""
    for entry in entries:
        if not entry.ready:
            print(f"{entry.name} ({entry.distribution}): {entry.problem}")
            if entry.mend:
                print(f"  to mend it: {entry.mend}")


def _facts(entry: methods.Entry) -> dict[str, str | None]:
    method = entry.method
    return {
        "method": entry.name,
        "summary": method.summary if method else None,
        "paper": method.paper if method else None,
        "ops": ", ".join(method.ops) if method else None,
        "extra": method.extra if method else None,
        "state": "ready" if entry.ready else "not ready",
    }


def info(name: Name) -> None:
    """Everything known about one method."""
    from pyext.show import show_rows

    found = methods.entries_named(name)
    for entry in found:
        facts = {**_facts(entry), "distribution": entry.distribution}
        if entry.method:
            facts["demo"] = f"pyext demo {name}" if entry.method.demo else None
            facts["commands"] = f"pyext {name} --help" if entry.method.commands else None
        show_rows([{"": key, name: value} for key, value in facts.items()])
    _show_problems(found)
