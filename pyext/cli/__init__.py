"""The command `pyext`: a thin face on the registry, the benchmarks and the plugins."""

from __future__ import annotations

import sys

from pyext.errors import UserError


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    try:
        from pyext.cli.app import make_app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        _fail(f"the command line needs {error.name}: pip install 'pyext-kernels[cli]'")
    try:
        make_app(sys.argv[1:])()
    except UserError as error:
        _fail(str(error))


def _fail(message: str) -> None:
    print(f"pyext: {message}", file=sys.stderr)
    sys.exit(2)
