"""One name through all layers, and arrows that run one way: plugins, then pyext, then csrc."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = sorted(path.parent.name for path in ROOT.glob("csrc/*/kernels.h"))
CORE = sorted(
    {*ROOT.glob("pyext/*.py"), *ROOT.glob("pyext/[!ct]*/*.py")} - {ROOT / "pyext/show.py"}
)


@pytest.mark.parametrize(
    "pattern",
    [
        *("csrc/{}/kernels.h", "csrc/{}/cpu.cpp", "csrc/{}/cuda.cu", "pyext/interface/{}.py"),
        *("pyext/ops/{}.py", "pyext/reference/{}.py", "benchmarks/{}.py", "tests/ops/test_{}_*.py"),
    ],
)
def test_every_family_has_its_file_in_every_layer(pattern):
    # The families this release has: a new one is added here.
    assert FAMILIES == ["circle", "lowrank", "side", "solve", "splat"]
    for family in FAMILIES:
        assert list(ROOT.glob(pattern.format(family))), pattern.format(family)


def imported(path: Path, everywhere: bool) -> set[str]:
    """Top-level packages that a file imports, at import time or anywhere in it."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


def test_the_core_needs_torch_and_numpy_only():
    assert len(CORE) > 10
    for path in CORE:
        others = imported(path, everywhere=False) - set(sys.stdlib_module_names)
        assert others <= {"torch", "numpy", "pyext"}, path


def test_pyext_imports_no_plugin():
    for path in ROOT.glob("pyext/**/*.py"):
        assert "pyext_plugins" not in imported(path, everywhere=True), path


INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.MULTILINE)


def includes(path: Path) -> set[str]:
    """All headers a file includes, directly or through the project's own."""
    found, waiting = set(), [path]
    while waiting:
        for name in INCLUDE.findall(waiting.pop().read_text()):
            if name not in found:
                found.add(name)
                if (ROOT / "csrc" / name).exists():
                    waiting.append(ROOT / "csrc" / name)
    return found


@pytest.mark.parametrize("name", ["cpu.cpp", "cuda.cu"])
def test_kernels_include_no_torch_header(name):
    for family in FAMILIES:
        names = includes(ROOT / "csrc" / family / name)
        assert f"{family}/kernels.h" in names
        torch_headers = [
            x for x in names if x.split("/")[0] in ("ATen", "torch", "c10", "pybind11")
        ]
        assert torch_headers == []


def test_no_kernel_is_launched_without_the_macro():
    for path in [*ROOT.glob("csrc/**/*.cu"), *ROOT.glob("csrc/**/*.cuh")]:
        assert "<<<" not in path.read_text(), path
