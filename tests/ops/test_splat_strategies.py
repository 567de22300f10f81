"""gsplat's own training strategies on our `meta`, without its CUDA extension."""

import math
import re

import pytest
import torch

from pyext.adapters.gsplat_strategies import compute_relocation, without_extension
from pyext.ops import splat
from tests.ops.splat_scenes import random_scene


def trainable(n=60):
    scene = random_scene(n, 40, 36, backgrounds=False)
    values = {
        "means": scene["means"], "scales": scene["scales"].log(), "quats": scene["quats"],
        "opacities": scene["opacities"].logit(), "colors": scene["colors"],
    }  # fmt: skip
    params = torch.nn.ParameterDict({k: torch.nn.Parameter(v.clone()) for k, v in values.items()})
    optimizers = {k: torch.optim.Adam([params[k]], lr=1e-3) for k in params}
    return scene, params, optimizers


def train(strategy, state, scene, params, optimizers, after, **options):
    """Fifty steps towards noise: losses, and the numbers of Gaussians."""
    target = torch.rand(1, 36, 40, 3, generator=torch.Generator().manual_seed(0))
    losses, sizes = [], []
    for step in range(50):
        colors, _, info = splat.rasterization(
            params["means"], params["quats"], params["scales"].exp(),
            params["opacities"].sigmoid(), params["colors"], scene["viewmats"], scene["Ks"],
            40, 36, **options,
        )  # fmt: skip
        strategy.step_pre_backward(params, optimizers, state, step, info)
        loss = (colors - target).square().mean()
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        strategy.step_post_backward(params, optimizers, state, step, info, **after)
        losses.append(float(loss.detach()))
        sizes.append(len(params["means"]))
    assert all(map(math.isfinite, losses))
    return losses, sizes


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("absgrad", [True, False])
def test_default_strategy(packed, absgrad):
    gsplat = pytest.importorskip("gsplat")
    strategy = gsplat.DefaultStrategy(
        refine_start_iter=5, refine_every=10, grow_grad2d=1e-6, absgrad=absgrad, reset_every=30,
        pause_refine_after_reset=0,
    )  # fmt: skip
    scene, params, optimizers = trainable()
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state(scene_scale=1.0)
    after = {"packed": packed}
    _, sizes = train(
        strategy, state, scene, params, optimizers, after, packed=packed, absgrad=absgrad
    )
    assert max(sizes) > 60


@pytest.mark.parametrize("packed", [True, False])
def test_mcmc_strategy(packed):
    gsplat = pytest.importorskip("gsplat")
    strategy = gsplat.MCMCStrategy(
        cap_max=70, refine_start_iter=5, refine_every=10, refine_stop_iter=50
    )
    scene, params, optimizers = trainable()
    with torch.no_grad():
        params["opacities"][:7] = -9  # dead: below min_opacity
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state()
    before = params["means"].detach().clone()
    torch.manual_seed(0)
    with without_extension():
        losses, sizes = train(
            strategy, state, scene, params, optimizers, {"lr": 1e-3}, packed=packed
        )
    # 5 % more at each of steps 10, 20, 30, 40, up to the cap.
    assert [sizes[step] for step in (0, 9, 10, 20, 30, 40)] == [60, 60, 63, 66, 69, 70]
    assert params["opacities"].sigmoid().min() > strategy.min_opacity
    moved = (params["means"][:60].detach() - before).norm(dim=1)
    assert moved[:7].min() > 3 * moved[7:].median()
    assert losses[-1] < losses[0]


def test_gsplats_functions_come_back():
    ops = pytest.importorskip("gsplat.strategy.ops")
    names = ("compute_relocation", "quat_scale_to_covar_preci")

    def functions():
        return [getattr(ops, name) for name in names]

    theirs = functions()
    with pytest.raises(RuntimeError, match="stop"), without_extension():
        assert functions() == [compute_relocation, splat.quat_scale_to_covar_preci]
        raise RuntimeError("stop")
    assert functions() == theirs
    assert all(function.__module__.startswith("gsplat.") for function in theirs)


def binomials(most):
    return torch.tensor([[math.comb(n, k) for k in range(most)] for n in range(most)]).float()


@pytest.mark.parametrize("ratio", [0, 1, 2, 3, 7, 51, 60])
def test_relocated_gaussians_are_those_of_equation_9(ratio):
    opacity, scale = 0.7, torch.tensor([[0.1, 0.2, 0.3]])
    most = 51
    shared, scales = compute_relocation(
        torch.tensor([opacity]), scale, torch.tensor([ratio]), binomials(most)
    )
    ratio = min(max(ratio, 1), most)
    each = 1 - (1 - opacity) ** (1 / ratio)
    total = sum(
        math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * each ** (k + 1)
        for i in range(1, ratio + 1)
        for k in range(i)
    )
    assert float(shared) == pytest.approx(each, rel=1e-6)
    assert torch.allclose(scales, scale * opacity / total, rtol=1e-4)


@pytest.mark.parametrize("name, value, message", [
    ("scales", torch.ones(4, 3), "scales: expected shape [2, 3], got [4, 3]"),
    ("ratios", torch.ones(3), "ratios: expected shape [2], got [3]"),
    ("binoms", torch.ones(5, 4), "binoms: expected shape [5, 5], got [5, 4]"),
    ("opacities", torch.ones(2, 1), "opacities: expected shape [2], got [2, 1]"),
])  # fmt: skip
def test_relocation_errors(name, value, message):
    arguments = {"opacities": torch.ones(2) / 2, "scales": torch.ones(2, 3)}
    arguments |= {"ratios": torch.ones(2).int(), "binoms": binomials(5)}
    compute_relocation(**arguments)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compute_relocation(**arguments | {name: value})
