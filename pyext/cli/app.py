"""The commands. What they stand on is imported when one runs: help must not wait for torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pyext import methods
from pyext.errors import UserError

Name = Annotated[str, typer.Argument(help="A method, as `pyext list` names it.")]
Folder = Annotated[Path, typer.Option("-o", "--output", help="Folder for what is written.")]


def make_app(arguments: Sequence[str]) -> typer.Typer:
    """The application for these arguments; a plugin is imported only if they name it."""
    plugins = [name for name in methods.names() if name in arguments[:1]]
    known = ", ".join(methods.names()) or "none is installed"
    app = typer.Typer(
        help="Compiled torch ops, and research methods on top of them.",
        epilog=f"Methods with commands of their own: {known}. See `pyext NAME --help`.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.command("list")(list_methods)
    app.command()(info)
    app.command()(doctor)
    app.command()(demo)
    app.command()(bench)
    app.command("new-plugin")(new_plugin)
    for name in plugins:
        _mount(app, name)
    return app


def _mount(app: typer.Typer, name: str) -> None:
    method = methods.get(name)
    if method.commands is None:
        raise UserError(f"method {name!r} has no commands of its own; try: pyext demo {name}")
    app.add_typer(methods.resolve(method.commands), name=name, help=method.summary)


def list_methods() -> None:
    """List the installed methods: what each is, and whether it can run."""
    from pyext.show import show_rows

    found = methods.entries()
    if not found:
        print("No methods are installed. The project's own: pip install 'pyext-plugins[all]'")
    show_rows([_facts(entry) for entry in found])


def _facts(entry: methods.Entry) -> dict[str, str | None]:
    method = entry.method
    state = "ready" if entry.ready else entry.problem
    return {
        "method": entry.name,
        "summary": method.summary if method else None,
        "paper": method.paper if method else None,
        "ops": ", ".join(method.ops) if method else None,
        "extra": method.extra if method else None,
        "state": f"{state}\n{entry.mend}" if entry.mend else state,
    }


def info(name: Name) -> None:
    """Everything known about one method."""
    from pyext.show import show_rows

    found = [entry for entry in methods.entries() if entry.name == name]
    if not found:
        methods.get(name)  # raises, with the names there are
    for entry in found:
        facts = {**_facts(entry), "distribution": entry.distribution}
        if entry.method:
            facts["demo"] = f"pyext demo {name}" if entry.method.demo else None
            facts["commands"] = f"pyext {name} --help" if entry.method.commands else None
        show_rows([{"": key, name: value} for key, value in facts.items()])


def doctor() -> None:
    """Versions, build, instruction set, threads, CUDA: what is there, and why not."""
    from pyext import environment
    from pyext.show import show_rows

    facts = environment.describe()
    rows = []
    for key, value in facts.items():
        if isinstance(value, dict):
            rows += [{"": f"{key}: {name}", "here": str(x) or "none"} for name, x in value.items()]
        else:
            shown = ", ".join(value) if isinstance(value, list) else str(value)
            rows.append({"": key, "here": shown})
    show_rows(rows)
    if facts["threads running"] < facts["threads"]:
        print("fewer threads run than torch.set_num_threads asks for", file=sys.stderr)


def demo(name: Name, output: Folder = Path("out/demo")) -> None:
    """Run a method's demo: a small reproduction whose claims can fail.

    Writes report.json and the pictures. Exit code 1 if a claim failed.
    """
    from pyext.show import show_claims, show_rows

    method = methods.get(name)
    if method.demo is None:
        raise UserError(f"method {name!r} has no demo")
    run = methods.resolve(method.demo)
    make_folder(output)
    report = run(output)
    report.save(output / "report.json")
    show_rows(report.rows, title=report.title)
    show_claims(report.claims)
    for caption, picture in report.pictures.items():
        print(f"{caption}: {picture}")
    if any(claim.held is False for claim in report.claims):
        raise typer.Exit(1)


def make_folder(path: Path) -> None:
    """Make an output folder before any work is done that would have nowhere to go."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot make the folder {path}: {error.strerror}") from error


def bench(
    family: Annotated[str | None, typer.Argument(help="An op family; all if left out.")] = None,
    threads: Annotated[
        str | None, typer.Option(help="Numbers of threads, as in 1,2; up to 2 if left out.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="For the timing of a family; its own if left out.")
    ] = None,
    output: Folder = Path("out/bench"),
) -> None:
    """Measure the op families against their reference and the limits of this machine.

    Writes JSON, a table and a plot for each. Exit code 1 if a claim failed.
    """
    counts = parse_threads(threads)
    use_benchmarks_of_the_checkout()
    from benchmarks.harness import families
    from benchmarks.report import main_run

    if family is not None and family not in families():
        raise UserError(f"no benchmarks for family {family!r}; there are: {', '.join(families())}")
    make_folder(output)
    chosen = [family] if family else families()
    if not all([main_run(name, counts, seconds, output) for name in chosen]):
        raise typer.Exit(1)


def parse_threads(text: str | None) -> list[int]:
    """Thread counts from ``1,2``; without a text 1, and 2 where there are two cores."""
    import os

    if text is None:
        return [1, 2] if (os.cpu_count() or 1) > 1 else [1]
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or len(set(counts)) < len(counts):
        raise UserError(f"--threads: expected different counts like 1,2, got {text!r}")
    return counts


def use_benchmarks_of_the_checkout() -> None:
    """Make `benchmarks` importable: it lies beside the package of an editable install."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "harness.py").exists():
        raise UserError(
            "the benchmarks are part of the source checkout, which this installation is not: "
            "clone it and run `make bench` there"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


def new_plugin(
    path: Annotated[Path, typer.Argument(help="Folder to make; its name names the method.")],
) -> None:
    """Write a plugin package that installs, lists and runs: a place to start from."""
    from pyext.cli.new_plugin import write_plugin

    name = write_plugin(path)
    print(f"Wrote {path}. Next:\n  pip install -e {path}\n  pyext demo {name}\n  pytest {path}")
