"""The same bits on any number of threads, at every repetition, on every instruction set."""

import pytest
import torch

from pyext import _C, runtime
from pyext.ops.splat import rasterization
from tests.ops.splat_scenes import random_scene, random_weights, run


def everything(scene):
    """Every output and gradient, by name."""
    rendered = run(rasterization, scene)
    outputs = {"colors out": rendered.colors.detach(), "alphas out": rendered.alphas.detach()}
    lists = {k: v.detach() for k, v in rendered.meta.items() if isinstance(v, torch.Tensor)}
    return outputs | lists | rendered.gradients(random_weights(rendered.values()))


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        assert torch.equal(actual[name], want), name


# More Gaussians than one task of the projection takes, more tiles than threads.
SCENES = {
    "many": {"n": 2500, "width": 70, "height": 50, "cameras": 2, "size": (0.01, 0.2)},
    "deep": {"n": 1500, "width": 20, "height": 40, "opacity": (0.005, 0.03), "channels": 7},
    "covars": {"n": 1100, "width": 40, "height": 40, "covars": True, "batch": (2,)},
    "double": {"n": 1100, "width": 40, "height": 40, "dtype": torch.float64},
}


@pytest.mark.parametrize("isa", runtime.isas())
@pytest.mark.parametrize("name", SCENES)
def test_threads_and_repetitions(name, isa):
    scene = random_scene(**SCENES[name])
    with runtime.use_isa(isa):
        with runtime.use_threads(1):
            expected = everything(scene)
        for count in (1, 2, 4):
            with runtime.use_threads(count):
                for _ in range(3):
                    assert_same_bits(everything(scene), expected)


def test_twenty_repetitions():
    scene = random_scene(300, 40, 40, cameras=2)
    expected = everything(scene)
    for _ in range(20):
        assert_same_bits(everything(scene), expected)


@pytest.mark.numerics_small
def test_repetitions_of_a_small_scene():
    scene = random_scene(40, 20, 20, cameras=2)
    assert_same_bits(everything(scene), everything(scene))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_instruction_sets_agree(dtype):
    scene = random_scene(300, 40, 33, cameras=2, dtype=dtype)
    results = {}
    for isa in runtime.isas():
        with runtime.use_isa(isa):
            assert runtime.isa() == isa
            results[isa] = everything(scene)
    best = results.pop(runtime.isas()[-1])
    # One more or one less rounding where a multiplication and an addition are fused; a tile on the
    # very edge of an ellipse may be listed by one set only, which changes no pixel.
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    for other in results.values():
        for name in best.keys() - {"radii", "isect_offsets", "flatten_ids"}:
            assert (other[name] - best[name]).norm() <= tolerance * best[name].norm(), name


def test_use_isa_restores_and_refuses():
    before = runtime.isa()
    with pytest.raises(RuntimeError, match="stop"), runtime.use_isa("baseline"):
        assert runtime.isa() == "baseline"
        raise RuntimeError("stop")
    assert runtime.isa() == before
    with pytest.raises(ValueError, match="sse9"), runtime.use_isa("sse9"):
        pass
    assert runtime.isa() == before


@pytest.mark.parametrize("count", [1, 2, 3])
def test_torch_sets_the_number_of_threads(count):
    with runtime.use_threads(count):
        assert _C.running_threads() == count


def test_backward_in_the_thread_of_the_caller():
    scene = random_scene(60, 30, 20)
    expected = everything(scene)
    with torch.autograd.set_multithreading_enabled(False):
        assert_same_bits(everything(scene), expected)
