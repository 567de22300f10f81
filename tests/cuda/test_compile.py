"""Every CUDA source compiles with nvcc without a warning, and no kernel of ours spills."""

import pytest

from tests.cuda.nvcc import ARCHITECTURES, SOURCES, compile_for, find_nvcc, parse_resources

NVCC = find_nvcc()


def test_resources_are_read_from_the_report():
    log = """ptxas info    : Compiling entry function '_ZN5pyext6kernelEv' for 'sm_80'
ptxas info    : Function properties for _ZN5pyext6kernelEv
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 56 registers, used 1 barriers, 21520 bytes smem, 392 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN3cub4noneEv' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 4 registers, 352 bytes cmem[0]
"""
    ours, other = parse_resources(log)
    assert (ours.registers, ours.shared, ours.spilled, ours.ours) == (56, 21520, 16, True)
    assert (other.registers, other.shared, other.spilled, other.ours) == (4, 0, 0, False)


@pytest.mark.skipif(NVCC is None, reason="no nvcc found")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.parent.name)
def test_compiles_without_spills(source, architecture):
    kernels = [k for k in compile_for(NVCC, source, architecture) if k.ours]
    assert kernels
    assert [k.name for k in kernels if k.spilled] == []
