"""The CUDA kernels on a real device, against the CPU kernels."""

import pytest
import torch

from pyext.ops.splat import rasterization
from tests.ops.splat_scenes import map_tensors, near_cuts, random_scene, random_weights, run

pytestmark = pytest.mark.gpu


def on_gpu(scene):
    return map_tensors(scene, lambda x: x.cuda())


@pytest.mark.parametrize("channels", [1, 3, 4, 7, 100])
@pytest.mark.parametrize("n, width, height", [(1, 1, 1), (64, 17, 23), (500, 130, 70)])
def test_agrees_with_the_cpu(n, width, height, channels):
    scene = random_scene(n, width, height, cameras=2, channels=channels, seed=n)
    expected, ours = run(rasterization, scene), run(rasterization, on_gpu(scene))
    clear = ~near_cuts(expected.meta)
    error = (ours.values().cpu() - expected.values()).abs()
    assert error.max() <= 5e-3
    assert error[clear].max() <= 1e-5
    weights = random_weights(expected.values()) * clear[..., None]
    want, got = expected.gradients(weights), ours.gradients(weights.cuda())
    for name in want:
        difference = got[name].cpu().double() - want[name].double()
        assert difference.norm() <= 2e-5 * want[name].double().norm(), name


def test_same_bits_every_time():
    scene = on_gpu(random_scene(2000, 200, 150, seed=3))
    weights = random_weights(run(rasterization, scene).values()).cuda()
    first, second = (run(rasterization, scene) for _ in range(2))
    assert torch.equal(first.values(), second.values())
    for name, gradient in first.gradients(weights).items():
        assert torch.equal(gradient, second.gradients(weights)[name]), name


def test_runs_on_the_current_stream():
    scene = on_gpu(random_scene(500, 100, 80, seed=4))
    expected = run(rasterization, scene).values()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        values = run(rasterization, scene).values()
    stream.synchronize()
    assert torch.equal(values, expected)


def test_float64_is_refused_with_the_reason():
    scene = on_gpu(random_scene(3, 16, 16, dtype=torch.float64))
    with pytest.raises(TypeError, match="float64 is computed on the CPU only"):
        run(rasterization, scene)
