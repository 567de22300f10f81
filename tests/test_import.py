"""The package imports, and its compiled part answers."""

import torch

import pyext.ops
import pyext.runtime


def test_build_is_for_this_torch():
    assert pyext.runtime.build_info()["torch"] == torch.__version__


def test_instruction_set_is_one_of_those_usable():
    assert pyext.runtime.isa() in pyext.runtime.isas()


def test_rasterization_of_one_gaussian():
    means = torch.tensor([[0.0, 0.0, 2.0]])
    colors, alphas, _ = pyext.ops.splat.rasterization(
        means,
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        torch.full((1, 3), 0.1),
        torch.tensor([0.5]),
        torch.tensor([[1.0, 0.5, 0.25]]),
        torch.eye(4)[None],
        torch.tensor([[[20.0, 0.0, 8.5], [0.0, 20.0, 8.5], [0.0, 0.0, 1.0]]]),
        17,
        17,
    )
    # The centre pixel sees the Gaussian's opacity.
    torch.testing.assert_close(alphas[0, 8, 8, 0], torch.tensor(0.5))
    torch.testing.assert_close(colors[0, 8, 8], torch.tensor([0.5, 0.25, 0.125]))
