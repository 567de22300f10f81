"""Diff-II on a Stable Diffusion of random weights: stages of prompts, learned tokens, LoRA."""

import json

import pytest
import torch

pytest.importorskip("diffusers")

from pyext_plugins.diffii import commands
from pyext_plugins.diffii.commands import Options
from pyext_plugins.diffii.loading import load_model
from pyext_plugins.diffii.manifest import Settings, load_manifest
from pyext_plugins.diffii.models import Guide
from safetensors.torch import save_file

from pyext.errors import UserError
from tests.plugins.diffii_models import picture_folder, stable_diffusion_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return stable_diffusion_folder(tmp_path_factory.mktemp("models") / "tiny")


def load(folder, **more):
    return load_model(folder, ["cat", "dog"], device=CPU, **more)


def asked(model, guide, steps=10):
    """The prompts that the U-Net reads at each of its steps, and its batch."""
    model.set_steps(steps, steps)
    seen = []
    hook = model.pipeline.unet.register_forward_pre_hook(
        lambda module, arguments, named: seen.append(named["encoder_hidden_states"]),
        with_kwargs=True,
    )
    x = torch.randn(len(guide.classes), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    pictures = model.generate(x, guide)
    hook.remove()
    assert pictures.shape == (len(guide.classes), 32, 32, 3) and pictures.dtype == torch.uint8
    return seen


@pytest.mark.parametrize(("fraction", "first"), [(0.0, 0), (0.3, 3), (0.35, 4), (1.0, 10)])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_the_plain_prompt_comes_in_at_its_step(folder, fraction, first, guidance):
    """At 10 steps the timesteps are 999, 899, ..., 99: the suffix is read at those from
    1000 (1 - fraction) on."""
    model = load(folder)
    texts = ["in snow" if fraction else "", "at night" if fraction else ""]
    seen = asked(model, Guide(["cat", "dog"], texts, fraction, guidance))
    plain = model._embed(["a photo of a cat", "a photo of a dog"])
    suffixed = model._embed(
        [f"a photo of a cat {texts[0]}".strip(), f"a photo of a dog {texts[1]}".strip()]
    )
    none = model._embed([""] * 2)
    for step, prompts in enumerate(seen):
        wanted = suffixed if step < first else plain
        # Without guidance the half without condition is not computed.
        assert torch.equal(prompts, torch.cat([none, wanted]) if guidance > 1 else wanted), step


def test_pictures_go_through_the_whole_of_it(folder, tmp_path):
    data = picture_folder(tmp_path / "data", counts=(2, 2))
    (tmp_path / "suffixes.txt").write_text("in snow\n\nat night\n")
    concepts = tmp_path / "concepts.json"
    concepts.write_text(json.dumps({"cat": "v1 cat"}))
    settings = Settings(2, 4, suffixes=("in snow", "at night"), suffix_fraction=0.3, batch=3)
    out = tmp_path / "out"
    options = Options(folder, prompt="photo of {}", concepts=concepts, threads=1)
    commands.augment(data, out, options, 5, settings)
    manifest = load_manifest(out / "manifest.jsonl")
    assert {image.suffix for image in manifest.images} <= {"in snow", "at night"}
    files = {image.id: out / "images" / f"{image.id}.png" for image in manifest.images}
    before = {identity: path.read_bytes() for identity, path in files.items()}
    assert len(set(before.values())) == 8
    for identity in ("cat/00002", "dog/00003"):
        files[identity].unlink()
        commands.regenerate(out / "inversions.safetensors", out, options, identity)
        assert files[identity].read_bytes() == before[identity]


def test_latents_are_inverted_as_diffusers_inverts_them(folder):
    from diffusers import DDIMInverseScheduler

    model = load(folder)
    model.set_steps(10, 10)
    theirs = DDIMInverseScheduler.from_config(model.inverse.config)
    theirs.set_timesteps(10)
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = model.pipeline.vae
    with torch.no_grad():
        x = vae.encode(pictures).latent_dist.mean * vae.config.scaling_factor
        assert torch.equal(x, model.encode(pictures))
        found = model.invert(x, ["cat", "dog"])
        for t in theirs.timesteps:
            x = theirs.step(model.predict(x, int(t), ["cat", "dog"]), t, x).prev_sample
    # Ten steps of a network whose weights are random amplify rounding.
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3 * float(x.abs().max()))


def test_learned_tokens_and_lora_change_what_is_asked(folder, tmp_path):
    token = tmp_path / "tokens.safetensors"
    save_file({"<cat-1>": torch.randn(2, 32)}, token)  # two vectors: a token of two places
    plain, learned = load(folder), load(folder, embeddings=[token])
    text = "a photo of a <cat-1>"
    assert not torch.equal(plain._embed([text]), learned._embed([text]))
    assert torch.equal(plain._embed(["a cat"]), learned._embed(["a cat"]))
    assert plain.digest() != learned.digest() and plain.digest() == load(folder).digest()
    assert learned.digest() == load(folder, embeddings=[token]).digest()

    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    unet = plain.pipeline.unet
    unet.add_adapter(
        LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"])
    )
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=state)
    adapted, base = load(folder, lora=tmp_path / "pytorch_lora_weights.safetensors"), load(folder)
    x = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        a, b, c = (m.predict(x, 500, ["cat"]) for m in (plain, adapted, base))
    torch.testing.assert_close(a, b)
    assert not torch.equal(b, c) and adapted.digest() != base.digest()


def test_bad_input_is_named(folder, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no")
    for more, text in (
        ({"prompt": "a photo"}, "--prompt: expected {} in it, for the concept, got 'a photo'"),
        ({"null_label": 1}, "--null-label: Stable Diffusion has no labels"),
        ({"embeddings": [tmp_path / "no"]}, "--embedding: expected a file, got"),
        ({"embeddings": [broken]}, "--embedding: .*broken.safetensors cannot be loaded"),
        ({"lora": broken}, "--lora: .*broken.safetensors cannot be loaded"),
    ):
        with pytest.raises(UserError, match=text):
            load(folder, **more)
    concepts = tmp_path / "concepts.json"
    concepts.write_text('{"fox": "a fox"}')
    with pytest.raises(UserError, match="--concepts: expected names of classes, got 'fox'"):
        load(folder, concepts=concepts).check(["cat"], 1.0, False)
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "model_index.json").write_text((folder / "model_index.json").read_text())
    with pytest.raises(UserError, match="--model: .*cut cannot be loaded"):
        load(cut)
