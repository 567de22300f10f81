"""The attention processor, on a small U-Net of random weights."""

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import UNet2DConditionModel  # noqa: E402
from diffusers.models.attention_processor import AttnProcessor2_0, SlicedAttnProcessor  # noqa: E402
from pyext_plugins.vcedit.attention import AttentionMaps  # noqa: E402
from pyext_plugins.vcedit.consistency import ViewConsistency  # noqa: E402
from pyext_plugins.vcedit.simulation import VIEWS, make_world  # noqa: E402

TOKENS = 5


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
    ).eval()


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2 * VIEWS, 4, 8, 8, generator=generator),
        10,
        torch.randn(2 * VIEWS, TOKENS, 12, generator=generator),
    )


@torch.no_grad()
def predict(unet, inputs):
    return unet(*inputs).sample


def cross_modules(unet):
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    return {name for name in names if name.endswith("attn2")}


def test_recording_changes_nothing_and_is_undone(unet, inputs):
    plain, before = predict(unet, inputs), dict(unet.attn_processors)
    with AttentionMaps(unet) as attention:
        recorded = predict(unet, inputs)
    # The fused attention it is compared with sums in another order.
    torch.testing.assert_close(recorded, plain, rtol=1e-4, atol=1e-5)
    assert unet.attn_processors == before
    assert set(attention.recorded) == cross_modules(unet)
    for maps in attention.recorded.values():
        assert maps.shape[0] == VIEWS and maps.shape[-1] == TOKENS
        torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    assert {maps.shape[2] for maps in attention.recorded.values()} == {64, 16}


def test_recorded_maps_are_the_conditional_ones(unet, inputs):
    latents, time, text = inputs
    with AttentionMaps(unet, chunk=0, chunks=1) as attention:
        predict(unet, (latents[VIEWS:], time, text[VIEWS:]))
    alone = attention.recorded
    with AttentionMaps(unet) as attention:
        predict(unet, inputs)
    for name, maps in attention.recorded.items():
        torch.testing.assert_close(maps, alone[name], rtol=1e-4, atol=1e-5)


def test_substitutes_act_on_the_conditional_half_only(unet, inputs):
    with AttentionMaps(unet) as attention:
        plain = predict(unet, inputs)
        attention.substitutes = dict(attention.recorded)
        torch.testing.assert_close(predict(unet, inputs), plain)
        attention.substitutes = {
            name: torch.full_like(maps, 1 / TOKENS) for name, maps in attention.recorded.items()
        }
        changed = predict(unet, inputs)
    torch.testing.assert_close(changed[:VIEWS], plain[:VIEWS])
    assert (changed[VIEWS:] - plain[VIEWS:]).abs().max() > 1e-4


def test_larger_maps_are_let_alone(unet, inputs):
    with AttentionMaps(unet, max_map_size=4) as attention:
        predict(unet, inputs)
    assert {maps.shape[2] for maps in attention.recorded.values()} == {16}


def test_the_maps_of_a_unet_become_consistent(unet, inputs):
    world = make_world(torch.Generator().manual_seed(0))
    consistency = ViewConsistency(world.scene, world.cameras)
    with AttentionMaps(unet) as attention:
        plain = predict(unet, inputs)
        attention.substitutes = consistency.on_attention(7, attention.recorded)
        changed = predict(unet, inputs)
    assert set(attention.substitutes) == cross_modules(unet)
    assert changed.isfinite().all() and not torch.equal(changed, plain)


def test_what_cannot_be_done_is_said(unet, inputs):
    with pytest.raises(ValueError, match="chunk: expected 0 to 1, got 2"):
        AttentionMaps(unet, chunk=2)
    with (
        AttentionMaps(unet, chunk=0, chunks=3),
        pytest.raises(ValueError, match="chunks: a batch of 20 has no 3 equal chunks"),
    ):
        predict(unet, inputs)
    name = sorted(cross_modules(unet))[0]
    with AttentionMaps(unet) as attention:
        attention.substitutes = {name: torch.zeros(1)}
        with pytest.raises(ValueError, match=f"substitutes: {name}: expected shape .*, got .1."):
            predict(unet, inputs)
    unet.set_attn_processor(SlicedAttnProcessor(1))
    with pytest.raises(NotImplementedError, match="got SlicedAttnProcessor; unet.set_default_attn"):
        AttentionMaps(unet)
    unet.set_attn_processor(AttnProcessor2_0())
