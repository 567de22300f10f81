"""The application: the commands, and those of the one method that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any

import typer

from pyext import methods

# These modules import what is heavy when a command runs: help must not wait for torch.
from pyext.cli.bench import bench
from pyext.cli.demo import demo
from pyext.cli.doctor import doctor
from pyext.cli.listing import info, list_methods
from pyext.cli.new_plugin import new_plugin
from pyext.errors import UserError, did_you_mean

COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_methods,
    "info": info,
    "doctor": doctor,
    "demo": demo,
    "bench": bench,
    "new-plugin": new_plugin,
}

# Commands that plugins add and that belong to no method: ``name = "module:app"``, a `typer.Typer`
# mounted as ``pyext name``.
GROUP = "pyext.commands"

# typer exports this class of its errors, but not their common one.
_UsageError: Any = typer.BadParameter.__base__


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code.

    Raises:
        UserError: bad input.
    """
    try:
        code = make_app(arguments)(list(arguments), prog_name="pyext", standalone_mode=False)
    except _UsageError as error:
        # Empty where the help was asked for by giving no arguments: it is on the terminal already.
        if not error.format_message():
            return 2
        where = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        raise UserError(error.format_message() + where) from error
    except typer.Abort:
        return 1
    return code if isinstance(code, int) else 0


def command_names() -> list[str]:
    """What follows ``pyext`` and is no method: the commands, then those of plugins."""
    return [*COMMANDS, *sorted({point.name for point in entry_points(group=GROUP)} - set(COMMANDS))]


def make_app(arguments: Sequence[str]) -> typer.Typer:
    """The application for these arguments; a plugin is imported only if they name it."""
    of_plugins = ", ".join(command_names()[len(COMMANDS) :])
    known = ", ".join(methods.names()) or "none is installed"
    app = typer.Typer(
        help="Compiled torch ops, and research methods on top of them.",
        epilog=(f"Commands that plugins add: {of_plugins}. " if of_plugins else "")
        + f"Methods with commands of their own: {known}. See `pyext NAME --help`.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for name, command in COMMANDS.items():
        app.command(name)(command)
    # A plugin's command or method that is called like one of these does not take its place.
    for name in arguments[:1]:
        if not name.startswith("-") and name not in COMMANDS:
            _mount(app, name)
    return app


def _mount(app: typer.Typer, name: str) -> None:
    offered = sorted({point.value for point in entry_points(group=GROUP, name=name)})
    if len(offered) > 1:
        raise UserError(f"several plugins offer the command {name!r}: {', '.join(offered)}")
    if offered:
        app.add_typer(methods.resolve(offered[0]), name=name)
        return
    if name not in methods.names():
        known = [*command_names(), *methods.names()]
        hint = did_you_mean(name, known)
        raise UserError(f"no command or method {name!r}.{hint} There are: {', '.join(known)}")
    method = methods.get(name)
    if method.commands is None:
        raise UserError(f"method {name!r} has no commands of its own; try: pyext demo {name}")
    app.add_typer(methods.resolve(method.commands), name=name, help=method.summary)
