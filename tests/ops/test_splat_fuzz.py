"""Any call ends in a result or in one clear error: never in a crash, whatever the numbers.

``--fuzz=10000`` makes so many calls.
"""

import warnings

import pytest
import torch

from pyext.ops import splat

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

ODD = [0.0, -0.0, 1.0, -1.0, 1e-30, 1e-7, 0.5, 3.0, 1e4, -1e4, 1e20, 1e38, -1e38,
       float("inf"), float("-inf"), float("nan")]  # fmt: skip


@st.composite
def tensors(draw, shape, low, high):
    """Mostly uniform numbers, some odd ones, any strides, now and then a shape that is wrong."""
    if draw(st.integers(0, 40)) == 0:
        shape = (*shape[:-1], abs(shape[-1] + draw(st.sampled_from([-1, 1]))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    values = low + (high - low) * torch.rand(shape, generator=generator)
    for _ in range(draw(st.integers(0, 2)) if values.numel() else 0):
        at = draw(st.integers(0, values.numel() - 1))
        values.view(-1)[at] = draw(st.sampled_from(ODD))
    layout = draw(st.sampled_from(["plain", "gaps", "transposed"]))
    if layout == "gaps":
        return torch.stack([values, values], -1)[..., 0]
    return values.mT.contiguous().mT if layout == "transposed" and values.dim() > 1 else values


@st.composite
def calls(draw):
    n, cameras = draw(st.integers(0, 6)), draw(st.integers(0, 2))
    size = st.integers(1, 40)
    degree = draw(st.sampled_from([None, None, 0, 1, 3, 4]))
    channels = draw(st.sampled_from([1, 3, 5, 17]))
    coefficients = () if degree is None else ((degree + 1) ** 2,)
    close = draw(st.sampled_from([2.0, 0.02, 0.0]))  # cameras in front of, among, inside them
    viewmats = torch.eye(4).repeat(cameras, 1, 1)
    viewmats[:, 2, 3] = close
    focal = draw(st.sampled_from([0.0, 1e-6, 20.0, 1e8, -20.0, float("nan")]))
    Ks = torch.tensor([[focal, 0, 10], [0, 20, 8], [0, 0, 1.0]]).repeat(cameras, 1, 1)
    return {
        "means": draw(tensors((n, 3), -1, 1)),
        "quats": draw(tensors((n, 4), -1, 1)),
        "scales": draw(tensors((n, 3), 0.001, draw(st.sampled_from([0.2, 50.0])))),
        "opacities": draw(tensors((n,), 0, 1)),
        "colors": draw(tensors((n, *coefficients, channels), -1, 1)),
        "viewmats": viewmats,
        "Ks": Ks,
        "width": draw(size),
        "height": draw(size),
        "sh_degree": degree,
        "near_plane": draw(st.sampled_from([0.01, 1e-6, 0.0, 5.0])),
        "radius_clip": draw(st.sampled_from([0.0, 2.0])),
        "packed": draw(st.booleans()),
        "absgrad": draw(st.booleans()),
        "render_mode": draw(st.sampled_from(["RGB", "D", "ED", "RGB+D", "RGB+ED"])),
        "rasterize_mode": draw(st.sampled_from(["classic", "antialiased"])),
        "camera_model": draw(st.sampled_from(["pinhole", "ortho", "fisheye"])),
        "compat": draw(st.sampled_from(["gsplat-1.5", "gsplat-main", "inria"])),
        "exact_tiles": draw(st.booleans()),
        "check_finite": draw(st.integers(0, 3)) == 0,
    }


@pytest.mark.numerics_small
def test_a_call_ends_in_a_result_or_a_clear_error(request):
    settings = hypothesis.settings(
        max_examples=request.config.getoption("--fuzz"),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    settings(hypothesis.given(calls())(check_call))()


def check_call(call):
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
    leaves = {name: call[name].detach().requires_grad_() for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            colors, alphas, meta = splat.rasterization(**call | leaves)
        except (ValueError, TypeError, NotImplementedError) as error:
            name = str(error).split(":")[0]
            assert name in call, error  # the message begins with the argument
            return
    cameras = call["viewmats"].shape[0]
    assert alphas.shape == (cameras, call["height"], call["width"], 1)
    assert colors.shape[:3] == alphas.shape[:3]
    assert ((alphas >= 0) & (alphas <= 1)).all()  # what is not a number is culled
    gradients = torch.autograd.grad(
        colors.sum() + alphas.sum(), list(leaves.values()), allow_unused=True
    )
    for leaf, gradient in zip(leaves.values(), gradients, strict=True):
        assert gradient is None or gradient.shape == leaf.shape
    lifted = splat.unproject(torch.ones(*alphas.shape[:3], 2), meta)
    assert lifted.values.shape == (call["means"].shape[0], 2)
    behind = splat.contributors(meta, 3)
    assert ((behind.ids >= -1) & (behind.ids < max(call["means"].shape[0], 1))).all()
