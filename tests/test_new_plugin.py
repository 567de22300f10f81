"""What `pyext new-plugin` writes installs, lists, runs, and passes its own test."""

from pathlib import Path

import pytest

from pyext.cli.new_plugin import write_plugin
from pyext.errors import UserError
from tests.fresh_venv import FreshVenv

ROOT = Path(__file__).resolve().parents[1]


def test_a_new_plugin_works(tmp_path):
    assert write_plugin(tmp_path / "my-method") == "my-method"
    fresh = FreshVenv(tmp_path / "venv")
    (fresh.packages / "checkout.pth").write_text(f"{ROOT}\n")
    fresh.install(tmp_path / "my-method")
    listed = fresh.run("-m", "pyext.cli", "list")
    assert listed.returncode == 0 and "my-method" in listed.stdout, listed.stdout + listed.stderr
    info = fresh.run("-m", "pyext.cli", "info", "my-method")
    assert info.returncode == 0 and "│ ready" in info.stdout, info.stdout + info.stderr
    demo = fresh.run("-m", "pyext.cli", "demo", "my-method", "-o", str(tmp_path / "out"))
    assert demo.returncode == 0 and "held" in demo.stdout, demo.stdout + demo.stderr
    command = fresh.run("-m", "pyext.cli", "my-method", "coverage", "--sigma", "4")
    assert abs(float(command.stdout) - 91.8) < 1
    tests = fresh.run("-m", "pytest", "-q", str(tmp_path / "my-method"))
    assert "3 passed" in tests.stdout, tests.stdout + tests.stderr


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match=r"PATH: .*taken exists; name a folder that does not"):
        write_plugin(tmp_path / "taken")


@pytest.mark.parametrize("name", ["My Plugin", "1st", "a_b", "-x", "x-"])
def test_a_name_that_names_no_method_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="PATH: its last part names the method, expected lower-ca"):
        write_plugin(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("list", "PATH: `pyext list` is a command already; choose another name"),
        ("data", "PATH: `pyext data` is a command already; choose another name"),
        ("class", "PATH: Python has a 'class' already; choose another name"),
        ("json", "PATH: Python has a 'json' already; choose another name"),
        ("splat-fit", "PATH: a method 'splat-fit' is installed already; choose another name"),
    ],
)
def test_a_name_that_is_taken_is_refused(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        write_plugin(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyext.cli.new_plugin._fill", fail)
    with pytest.raises(UserError, match=r"PATH: cannot write .*: No space left on device"):
        write_plugin(tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []
