"""The command `pyext`: a thin face on the registry, the benchmarks and the plugins."""

from __future__ import annotations

import sys

from pyext.errors import UserError, one_line


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    try:
        from pyext.cli.app import run

        code = run(sys.argv[1:])
    except UserError as error:
        code = _complain(one_line(error).removeprefix("pyext: "))
    except ModuleNotFoundError as error:
        # The extra `cli`, which cannot be looked up in the metadata without its own `packaging`.
        if error.name not in ("typer", "rich", "packaging"):
            raise
        code = _complain(f"the command line needs {error.name}: pip install 'pyext-kernels[cli]'")
    sys.exit(code)


def _complain(message: str) -> int:
    print(f"pyext: {message}", file=sys.stderr)
    return 2
