"""A plugin package by an outsider, installed in a fresh environment and used."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.fresh_venv import FreshVenv

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "third_party_plugin"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    fresh = FreshVenv(tmp_path_factory.mktemp("third-party") / "venv")
    # The package under test itself comes from the checkout.
    (fresh.packages / "checkout.pth").write_text(f"{ROOT}\n")
    # From a copy: building leaves files in the source tree.
    copy = tmp_path_factory.mktemp("source") / "splat-orbit"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    fresh.install(copy)
    return fresh


def test_it_is_listed_as_ready(fresh):
    done = fresh.run("-m", "pyext.cli", "info", "splat-orbit")
    assert done.returncode == 0, done.stderr
    assert "Draw a point cloud from a camera that circles it." in done.stdout
    assert "│ ready" in done.stdout and "pyext splat-orbit --help" in done.stdout


def test_its_demo_holds(fresh, tmp_path):
    done = fresh.run("-m", "pyext.cli", "demo", "splat-orbit", "-o", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("held") == 2
    assert (tmp_path / "orbit.gif").exists() and (tmp_path / "report.json").exists()


def test_its_command_works_on_a_file(fresh, tmp_path):
    points, picture = tmp_path / "points.npy", tmp_path / "orbit.gif"
    np.save(points, np.random.default_rng(0).normal(size=(200, 3)))
    arguments = ("-m", "pyext.cli", "splat-orbit", "render", str(points), "-o", str(picture))
    done = fresh.run(*arguments, "--frames", "3")
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"GIF89a")


def test_its_error_is_one_line(fresh, tmp_path):
    missing = tmp_path / "none.npy"
    done = fresh.run("-m", "pyext.cli", "splat-orbit", "render", str(missing), "-o", "x.gif")
    assert done.returncode == 2
    assert done.stderr.startswith(f"pyext: POINTS: {missing} is not a .npy file")
    assert done.stderr.count("\n") == 1


def test_its_own_tests_pass(fresh):
    done = fresh.run("-m", "pytest", str(EXAMPLE / "tests"))
    assert done.returncode == 0 and "9 passed" in done.stdout, done.stdout + done.stderr
