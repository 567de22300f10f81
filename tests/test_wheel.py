"""The wheel works in a fresh environment, without the source tree."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.fresh_venv import FreshVenv

ROOT = Path(__file__).resolve().parents[1]

SMOKE = """
import pathlib, sys, torch, pyext, pyext._C
from pyext.ops.splat import rasterization
assert pathlib.Path(pyext._C.__file__).is_relative_to(sys.prefix), pyext._C.__file__
_, alphas, _ = rasterization(
    torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.full((1, 3), 0.1),
    torch.tensor([0.5]), torch.ones(1, 3), torch.eye(4)[None],
    torch.tensor([[[20.0, 0.0, 8.5], [0.0, 20.0, 8.5], [0.0, 0.0, 1.0]]]), 17, 17,
)
print(round(alphas[0, 8, 8, 0].item(), 6))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # What setuptools gathered before may hold modules that are gone; it takes them along.
    for gathered in (ROOT / "build").glob("lib.*"):
        shutil.rmtree(gathered)
    # setup.py keeps what it compiled: this links again what is already built.
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(folder), str(ROOT)], check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_the_package_and_no_test_equipment(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"pyext"}
    assert any(name.startswith("pyext/_C.") and name.endswith(".so") for name in names)
    assert "pyext/py.typed" in names and "pyext/_C.pyi" in names
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {str(path.relative_to(ROOT)) for path in (ROOT / "pyext").rglob("*.py")}
    templates = ROOT / "pyext" / "templates"
    shipped = {name for name in names if name.startswith("pyext/templates/")}
    assert shipped == {
        f"pyext/templates/{path.relative_to(templates)}"
        for path in templates.rglob("*")
        if path.is_file()
    }


def test_wheel_works_without_the_source_tree(wheel, tmp_path):
    fresh = FreshVenv(tmp_path / "venv")
    fresh.install(wheel)
    smoke = fresh.run("-c", SMOKE)
    assert smoke.stdout == "0.5\n", smoke.stderr
    doctor = fresh.run("-m", "pyext.cli", "doctor")
    assert doctor.returncode == 0 and "instruction set" in doctor.stdout, doctor.stderr
    bench = fresh.run("-m", "pyext.cli", "bench")
    assert bench.returncode == 2
    assert bench.stderr.startswith("pyext: the benchmarks are part of the source checkout")
