"""Diff-II's noise levels: diffusers' own to rounding, in both directions; what is refused."""

import warnings

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pyext_plugins.diffii.schedule import denoise, make_schedulers, renoise, set_steps

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SD |= {"set_alpha_to_one": False, "steps_offset": 1}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("config", [{}, SD])
def test_steps_are_those_of_diffusers(prediction, spacing, config):
    forward, inverse = make_schedulers({**config, "prediction_type": prediction}, spacing)
    own = {**config, "prediction_type": prediction, "timestep_spacing": spacing}
    theirs = diffusers.DDIMScheduler(**own, clip_sample=False)
    back = diffusers.DDIMInverseScheduler(**own, clip_sample=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_steps(forward, inverse, 20, 40)
    theirs.set_timesteps(20)
    back.set_timesteps(40)
    assert torch.equal(forward.timesteps, theirs.timesteps)
    assert torch.equal(inverse.timesteps, back.timesteps)
    x, predicted = torch.randn(2, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    # float32 rounding of a sum of a few terms of size up to 1 / sqrt(alpha).
    for t in forward.timesteps.tolist():
        scale = 1e-6 * (1 + 1 / float(theirs.alphas_cumprod[t]) ** 0.5)
        expected = theirs.step(predicted, t, x, eta=0.0).prev_sample
        torch.testing.assert_close(denoise(predicted, x, forward, t), expected, rtol=0, atol=scale)
        assert torch.equal(
            forward.step(predicted, t, x, return_dict=False)[0], denoise(predicted, x, forward, t)
        )
    last = forward.step(predicted, t, x).prev_sample
    assert torch.equal(last, denoise(predicted, x, forward, t))
    for t in inverse.timesteps.tolist():
        expected = back.step(predicted, t, x).prev_sample
        scale = 1e-5
        torch.testing.assert_close(renoise(predicted, x, inverse, t), expected, rtol=0, atol=scale)


def test_guidance_is_part_of_the_step():
    forward, inverse = make_schedulers({})
    set_steps(forward, inverse, 10, 10)
    x, without, with_condition = torch.randn(3, 2, 1, 4, 4)
    guided = without + 3 * (with_condition - without)
    both = torch.cat([without, with_condition])
    found = denoise(both, x, forward, 499, guidance=3.0, cfg=True)
    torch.testing.assert_close(found, denoise(guided, x, forward, 499), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_inverted_is_refused_or_said():
    with pytest.raises(ValueError, match="expected prediction_type 'epsilon' or .*, got 'sample'"):
        make_schedulers({"prediction_type": "sample"})
    with pytest.raises(ValueError, match="spacing: expected 'trailing' or 'leading', got 'linspa"):
        make_schedulers({}, "linspace")
    with pytest.raises(
        ValueError, match="expected rescale_betas_zero_snr=False, got True: no image"
    ):
        make_schedulers({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
    for name in ("clip_sample", "thresholding"):
        with pytest.warns(UserWarning, match=f"has {name}=True, used is {name}=False"):
            forward, _ = make_schedulers({name: True})
        assert not forward.config[name]


def test_schedules_that_do_not_meet_are_said_with_both_values():
    forward, inverse = make_schedulers(SD, "leading")
    text = r"end at timestep 996 \(noise 0.9976\), 25 steps .* start at 961 \(noise 0.9964\)"
    with pytest.warns(UserWarning, match=text):
        set_steps(forward, inverse, 25, 200)
    set_steps(*make_schedulers(SD, "trailing"), 25, 200)  # meet: a warning would be an error
    with pytest.raises(ValueError, match="inversion_steps: expected 1 to 1000, got 0"):
        set_steps(forward, inverse, 25, 0)
    with pytest.raises(ValueError, match="^steps: expected 1 to 1000, got 1001"):
        set_steps(forward, inverse, 1001, 10)
