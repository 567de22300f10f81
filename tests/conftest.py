"""Which implementation the tests run: the CPU kernels, or the emulated CUDA kernels.

``--backend=emulator`` (or ``sanitized``) keeps the tests marked ``numerics_small`` and runs them
with the CUDA sources in place of the CPU kernels; ``sanitized`` keeps one case of each.
"""

import pytest


def pytest_addoption(parser):
    parser.addoption("--backend", choices=["cpu", "emulator", "sanitized"], default="cpu")
    parser.addoption("--fuzz", type=int, default=200, help="calls that the fuzz tests make")


def pytest_configure(config):
    backend = config.getoption("--backend")
    if backend == "cpu":
        return
    from pyext._load import load
    from tests.cuda.emulated import build

    _C = load()
    _C.load_backend(backend, str(build(backend)))
    _C.set_isa(backend)


def pytest_collection_modifyitems(config, items):
    backend = config.getoption("--backend")
    if backend != "cpu":
        small = [item for item in items if item.get_closest_marker("numerics_small")]
        if backend == "sanitized":  # slow: of each test the last case, which is the largest
            small = list({item.nodeid.partition("[")[0]: item for item in small}.values())
        config.hook.pytest_deselected(items=[item for item in items if item not in small])
        items[:] = small


@pytest.fixture(autouse=True)
def _no_gpu_test_without_a_gpu(request):
    if request.node.get_closest_marker("gpu"):
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
