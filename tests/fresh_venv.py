"""Fresh virtual environments that see this one's packages, so that nothing is downloaded again."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


class FreshVenv:
    """An environment of its own in ``folder``.

    This environment's packages are on its path by a plain line, behind its own: what is installed
    there comes first, and editable installs, which need a file of theirs to be processed, are not
    inherited.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        self.packages = folder / "lib" / version / "site-packages"
        (self.packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install(self, *sources: Path) -> None:
        """Install wheels or source trees without their requirements and without a network."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet"]
        offline = ["--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed"]
        subprocess.run([*command, *offline, *map(str, sources)], check=True)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python with these arguments, away from the checkout."""
        return subprocess.run(
            [str(self.python), *arguments], cwd=self.folder, capture_output=True, text=True
        )
