"""The ops under torch's own checks, `torch.compile`, `torch.export`, autocast."""

import pytest
import torch

from pyext.ops.splat import rasterization
from tests.ops.splat_ops import NAMES, arguments_of
from tests.ops.splat_scenes import random_scene, random_weights, run

CASES = {
    "plain": {},
    "covars": {"covars": True},
    "one": {"n": 1, "channels": 1},
    "none": {"n": 0},
    "many channels": {"channels": 7},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("op", NAMES)
def test_opcheck(op, case):
    arguments = tuple(arguments_of(op, **CASES[case]).values())
    torch.library.opcheck(getattr(torch.ops.pyext, op).default, arguments)


DIFFERENTIABLE = {
    "splat_project": ("means", "covars", "quats", "scales", "opacities", "viewmats", "Ks"),
    "splat_sh": ("means", "centres", "coeffs"),
    "splat_composite": ("means2d", "conics", "opacities", "features"),
    "splat_unproject": ("means2d", "conics", "opacities", "values"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_opcheck_with_gradients(op, case):
    arguments = arguments_of(op, **CASES[case])
    for name in DIFFERENTIABLE[op]:
        if arguments[name] is not None:
            arguments[name] = arguments[name].clone().requires_grad_()
    # The check that traces the backward adds all outputs up in place, which fails where the first
    # is an integer: `test_compiled_equals_eager` traces that one.
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if op != "splat_project":
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(
        getattr(torch.ops.pyext, op).default, tuple(arguments.values()), test_utils=checks
    )


def colors_and_alphas(**scene):
    colors, alphas, meta = rasterization(**scene)
    return colors, alphas, {"means2d": meta["means2d"], "flatten_ids": meta["flatten_ids"]}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("covars", [False, True])
def test_compiled_equals_eager(covars):
    compiled = torch.compile(colors_and_alphas, fullgraph=True, backend="aot_eager")
    for n, seed in ((12, 0), (12, 1), (9, 2)):  # as many entries as it takes; other sizes
        scene = random_scene(n, 20, 18, cameras=2, covars=covars, seed=seed)
        expected, actual = run(rasterization, scene), run(compiled, scene)
        assert torch.equal(actual.values(), expected.values())
        assert torch.equal(actual.meta["flatten_ids"], expected.meta["flatten_ids"])
        weights = random_weights(expected.values())
        gradients = actual.gradients(weights)
        for name, want in expected.gradients(weights).items():
            torch.testing.assert_close(gradients[name], want, msg=name)


def test_inductor_equals_eager():
    compiled = torch.compile(colors_and_alphas, fullgraph=True)
    scene = random_scene(12, 20, 18)
    expected, actual = run(rasterization, scene), run(compiled, scene)
    # Inductor fuses what surrounds the ops, and rounds there as it likes.
    torch.testing.assert_close(actual.values(), expected.values(), atol=1e-6, rtol=1e-6)
    weights = random_weights(expected.values())
    gradients = actual.gradients(weights)
    for name, want in expected.gradients(weights).items():
        torch.testing.assert_close(gradients[name], want, atol=1e-4, rtol=1e-4, msg=name)


class Renderer(torch.nn.Module):
    def forward(self, scene):
        return rasterization(**scene, width=20, height=18)[:2]


def tensors(scene):
    return {k: v for k, v in scene.items() if isinstance(v, torch.Tensor)}


@pytest.mark.parametrize("dynamic", [False, True])
def test_export(dynamic):
    """With fixed shapes, or for any number of Gaussians."""
    scene = tensors(random_scene(12, 20, 18, cameras=2))
    gaussians = torch.export.Dim("gaussians", min=2)
    views = ("viewmats", "Ks", "backgrounds")
    shapes = {"scene": {k: {} if k in views else {0: gaussians} for k in scene}}
    program = torch.export.export(Renderer(), (scene,), dynamic_shapes=shapes if dynamic else None)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {f"pyext.splat_{stage}.default" for stage in ("project", "bin", "composite")} <= called
    other = tensors(random_scene(30 if dynamic else 12, 20, 18, cameras=2, seed=1))
    expected = Renderer()(other)
    for got, want in zip(program.module()(other), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("covars", [False, True])
def test_autocast_leaves_float32_alone(covars):
    scene = random_scene(12, 20, 18, cameras=2, covars=covars)
    expected = run(rasterization, scene)
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(rasterization, scene)
    assert torch.equal(actual.values(), expected.values())
    weights = random_weights(expected.values())
    gradients = actual.gradients(weights)
    for name, want in expected.gradients(weights).items():
        assert torch.equal(gradients[name], want), name


def test_autocast_takes_half_precision_as_float32():
    scene = random_scene(12, 20, 18)
    half = scene["colors"].bfloat16()
    expected = run(rasterization, {**scene, "colors": half.float()})
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(rasterization, {**scene, "colors": half})
    assert torch.equal(actual.values(), expected.values())
    weights = random_weights(expected.values())
    gradient = actual.gradients(weights)["colors"]
    assert gradient.dtype == torch.bfloat16
    assert torch.equal(gradient, expected.gradients(weights)["colors"].bfloat16())
    with pytest.raises(TypeError, match="^colors: expected dtype torch.float32 like means"):
        run(rasterization, {**scene, "colors": half})
