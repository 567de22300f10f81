"""A DDIM step with guidance, in one pass."""

from __future__ import annotations

import math

import pytest
import torch

from pyext.ops import circle
from pyext.reference import circle as reference
from tests.ops.agreement import (
    DTYPES,
    assert_near,
    assert_same_on_any_threads,
    gradients,
    random,
)

ops = torch.ops.pyext
SHAPES = [(1, 1), (2, 3, 5), (3, 4, 8, 8), (2, 20000)]
HERE, THERE = [0.3, 0.5, 0.7], [0.4, 0.6, 0.2]  # both ways


def inputs(shape, dtype=torch.float64, cfg=True, clip=None, prediction="epsilon"):
    batch = shape[0]
    eps = random(2 * batch if cfg else batch, *shape[1:], dtype=dtype, seed=1)
    coef = circle.ddim_coefficients(
        HERE[:batch], THERE[:batch], prediction, clipped=clip is not None
    )
    return eps, random(*shape, dtype=dtype), coef


def compare(shape, dtype, **options):
    clip, cfg = options.get("clip"), options.get("cfg", False)
    prediction = options.pop("prediction", "epsilon")
    eps, x, coef = inputs(shape, dtype, cfg, clip, prediction)
    leaves = (eps.requires_grad_(), x.requires_grad_())
    got, g_got = gradients(lambda: circle.ddim_affine_step(eps, x, coef, **options), leaves)
    want, g_want = gradients(lambda: reference.ddim_affine_step(eps, x, coef, **options), leaves)
    assert_near(got[0], want[0], 2)
    for name, a, b in zip(("eps", "x"), g_got, g_want, strict=True):
        assert_near(a, b, 4, name)


OPTIONS = [
    {},
    {"cfg": True, "guidance": 7.5},
    {"cfg": True, "guidance": 1.0, "dup": 2},
    {"cfg": True, "guidance": 2.0, "clip": 1.0, "prediction": "v_prediction"},
    {"clip": 0.5, "dup": 2},
]


@pytest.mark.numerics_small
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_step_small(shape, options):
    for dtype in DTYPES:
        compare(shape, dtype, **options)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_step(dtype, options):
    compare(SHAPES[3], dtype, **options)


def test_one_row_of_coefficients_is_for_all():
    eps, x, _ = inputs((3, 7), cfg=False)
    one = circle.ddim_coefficients(0.3, 0.6)
    each = circle.ddim_coefficients([0.3] * 3, 0.6)
    assert one.shape == (1, 2) and each.shape == (3, 2)
    assert torch.equal(circle.ddim_affine_step(eps, x, one), circle.ddim_affine_step(eps, x, each))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_there_and_back(prediction, clip):
    """A step of the exact noise goes to where the same image has other noise."""
    clean, noise = random(2, 50).clamp(-1, 1), random(2, 50, seed=1)
    here, there = 0.4, 0.9

    def noisy(level):
        return math.sqrt(level) * clean + math.sqrt(1 - level) * noise

    predicted = noise
    if prediction == "v_prediction":
        predicted = math.sqrt(here) * noise - math.sqrt(1 - here) * clean
    coef = circle.ddim_coefficients(here, there, prediction, clipped=clip is not None)
    moved = circle.ddim_affine_step(predicted, noisy(here), coef, clip=clip)
    torch.testing.assert_close(moved, noisy(there))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("clip", [False, True])
def test_agrees_with_the_scheduler_of_diffusers(prediction, clip):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        prediction_type=prediction, clip_sample=clip, set_alpha_to_one=False
    )
    scheduler.set_timesteps(20)
    eps, x, _ = inputs((2, 4, 8, 8), torch.float32)
    without, condition = eps.chunk(2)
    guided = without + 7.5 * (condition - without)
    for t in scheduler.timesteps[[0, 7, 19]].tolist():
        want = scheduler.step(guided, t, x).prev_sample
        previous = t - 1000 // 20
        levels = scheduler.alphas_cumprod
        after = levels[previous] if previous >= 0 else scheduler.final_alpha_cumprod
        coef = circle.ddim_coefficients(levels[t], after, prediction, clipped=clip)
        options = {"clip": 1.0} if clip else {}
        got = circle.ddim_affine_step(eps, x, coef, guidance=7.5, cfg=True, **options)
        assert_near(got, want)


def test_guidance_one_does_not_read_the_unconditional_half():
    eps, x, coef = inputs((2, 9))
    eps[:2] = math.nan
    assert circle.ddim_affine_step(eps, x, coef, cfg=True).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_results_are_the_same_bits(dtype):
    eps, x, coef = inputs((3, 3000001), dtype)
    whole = circle.ddim_affine_step(eps, x, coef, cfg=True, guidance=3.0)
    assert whole.nbytes > 2**24
    for b in range(3):
        alone = circle.ddim_affine_step(
            eps[[b, 3 + b]], x[b : b + 1], coef[b : b + 1], cfg=True, guidance=3.0
        )
        assert torch.equal(whole[b : b + 1], alone)


@pytest.mark.parametrize("options", OPTIONS)
def test_step_gradcheck(options):
    options = dict(options)
    prediction = options.pop("prediction", "epsilon")
    cfg, clip = options.get("cfg", False), options.get("clip")
    eps, x, coef = inputs((2, 5), cfg=cfg, clip=clip, prediction=prediction)
    assert torch.autograd.gradcheck(
        lambda eps, x: circle.ddim_affine_step(eps, x, coef, **options),
        (eps.requires_grad_(), x.requires_grad_()),
    )


def test_step_threads():
    eps, x, coef = inputs((3, 50000), torch.float32)
    assert_same_on_any_threads(
        lambda: [circle.ddim_affine_step(eps, x, coef, cfg=True, guidance=2.0)]
    )


def test_step_opcheck():
    eps, x, coef = inputs((2, 5), torch.float32)
    leaves = (eps.requires_grad_(), x.requires_grad_(), coef)
    torch.library.opcheck(ops.circle_ddim_affine_step.default, (*leaves, 2.0, True, 0.0, 2))


def test_step_of_nothing():
    for shape in ((0, 4), (2, 0)):
        x = torch.zeros(shape)
        coef = circle.ddim_coefficients(0.5, 0.6)
        assert circle.ddim_affine_step(x, x, coef, dup=2).shape == (2 * shape[0], shape[1])


@pytest.mark.parametrize(
    "change, options, error, message",
    [
        ({"eps": torch.zeros(3, 5)}, {}, ValueError, r"eps: expected shape \[2, 5\], got \[3, 5\]"),
        ({}, {"cfg": True}, ValueError, r"eps: expected shape \[4, 5\], got \[2, 5\]"),
        (
            {"eps": torch.zeros(2, 5).half()},
            {},
            TypeError,
            "eps: expected dtype torch.float32, got",
        ),
        ({"coef": torch.zeros(2, 2)}, {}, TypeError, "coef: expected dtype torch.float64, got"),
        ({"coef": torch.zeros(3, 2).double()}, {}, ValueError, "coef: expected 1 or 2 rows, got 3"),
        ({}, {"clip": 1.0}, ValueError, r"coef: expected shape \[B, 5\], got \[1, 2\]"),
        ({}, {"clip": -1.0}, ValueError, "clip: expected a positive number or None, got -1.0"),
        ({}, {"guidance": math.nan}, ValueError, "guidance: expected a finite number, got nan"),
        ({}, {"dup": 0}, ValueError, "dup: expected 1 or 2, got 0"),
    ],
)
def test_step_errors(change, options, error, message):
    x = torch.zeros(2, 5)
    arguments = {"eps": x, "x": x, "coef": circle.ddim_coefficients(0.5, 0.6)} | change
    for implementation in (circle, reference):
        with pytest.raises(error, match=f"^{message}"):
            implementation.ddim_affine_step(**arguments, **options)


@pytest.mark.parametrize("levels, name", [((0.0, 0.5), "from"), ((0.5, 1.5), "to")])
def test_coefficient_errors(levels, name):
    with pytest.raises(ValueError, match=rf"^alpha_cumprod_{name}: expected numbers in \(0, 1\]"):
        circle.ddim_coefficients(*levels)
    with pytest.raises(ValueError, match="^prediction: expected one of 'epsilon', 'v_prediction'"):
        circle.ddim_coefficients(0.5, 0.6, "sample")
