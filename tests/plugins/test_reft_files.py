"""Editors on disk: written, read, taken from pyreft, and what is refused."""

import json

import pytest
import torch
from pyext_plugins.reft.config import KINDS, ReftConfig
from pyext_plugins.reft.files import CONFIG, WEIGHTS
from pyext_plugins.reft.model import Editor
from pyext_plugins.reft.pyreft import load_pyreft
from safetensors.torch import load_file, save_file

from pyext.errors import UserError
from tests.plugins.reft_models import llama, perturb, tokens
from tests.plugins.side_models import HIDDEN

SMALL = {"rank": 2, "prefix": 2, "suffix": 2}
INPUTS = tokens([5, 7])


def saved(folder, model=None, **settings):
    model = llama() if model is None else model
    editor = perturb(Editor(model, ReftConfig(**{"start": "random", **SMALL, **settings})))
    editor.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_saved_editors_give_the_same_bits(kind, tmp_path):
    model = saved(tmp_path, kind=kind, tied=False, layers=(0, 2))
    editor = Editor.from_pretrained(llama(), tmp_path)
    assert torch.equal(editor.model(**INPUTS).logits, model(**INPUTS).logits)
    assert editor.trained == 0 and editor.config == model.reft.config
    again = Editor.from_pretrained(llama(), tmp_path, trainable=True)
    assert again.trained == model.reft.trained
    found, wanted = again.model(**INPUTS).logits, model(**INPUTS).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_folder_says_what_is_in_it(tmp_path):
    saved(tmp_path, layers=(1,))
    tensors = load_file(tmp_path / WEIGHTS)
    assert {name: list(t.shape) for name, t in tensors.items()} == {
        "blocks.R": [1, 2, HIDDEN],
        "blocks.W": [1, 2, HIDDEN],
        "blocks.b": [1, 2],
    }
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    R = tensors["blocks.R"]
    assert (R @ R.mT - torch.eye(2)).abs().max() < 1e-5
    content = json.loads((tmp_path / CONFIG).read_text())
    assert content["peft_type"] == "REFT" and content["base_class"] == "LlamaForCausalLM"
    assert content["editors"][0]["path"] == "model.layers.1"
    assert "floor(n / 2)" in content["positions"]


def test_a_bad_folder_is_named_and_leaves_no_editors(tmp_path):
    saved(tmp_path)
    model, path = llama(), tmp_path / WEIGHTS
    good, text = load_file(path), (tmp_path / CONFIG).read_text()

    def refused(message, tensors=None, content=None):
        save_file({**good, **(tensors or {})}, path)
        (tmp_path / CONFIG).write_text(text if content is None else content)
        with pytest.raises(UserError, match=message):
            Editor.from_pretrained(model, tmp_path)
        assert not hasattr(model, "reft")

    with pytest.raises(UserError, match="cannot be read"):
        Editor.from_pretrained(model, tmp_path / "nothing")
    refused(
        "blocks.R: the orthonormal factor must be kept in fp32, got bfloat16",
        {"blocks.R": good["blocks.R"].bfloat16()},
    )
    refused("blocks.R: expected orthonormal rows, R R.T is", {"blocks.R": 2 * good["blocks.R"]})
    refused("not the editors of this config: blocks.V", {"blocks.V": good["blocks.b"].clone()})
    refused(
        r"blocks.b: expected shape \[3, 2\], got \[3, 1\]",
        {"blocks.b": good["blocks.b"][:, :1].contiguous()},
    )
    refused("expected editors of type REFT, got 'MRT'", content=text.replace("REFT", "MRT"))
    refused("unknown setting 'lenght'", content=text.replace('"prefix"', '"lenght"'))
    refused("rank: expected 1 to 64, got 0", content=text.replace('"rank": 2', '"rank": 0'))
    refused("cannot be read", content="{")
    path.write_bytes(b"no")
    with pytest.raises(UserError, match="adapter_model.safetensors cannot be read"):
        Editor.from_pretrained(model, tmp_path)


def pyreft_folder(folder, model, change=lambda state: state):
    """What pyreft would have left of these editors."""
    folder.mkdir(exist_ok=True)
    editor = model.reft
    stack, R = editor.stacks["blocks"], editor.factors()["blocks"].B.detach()
    per = editor.config.editors_per_block
    for e in range(len(R)):
        layer = editor.config.layers[e // per]
        if stack.W is None:
            state = {"learned_source": stack.b[e].detach().clone()}
        else:
            state = {"weight": stack.W[e].detach().clone(), "bias": stack.b[e].detach().clone()}
        state["rotate_layer"] = R[e].T.contiguous()
        name = f"intkey_layer_{layer}_comp_block_output_unit_pos_nunit_1#{e % per}.bin"
        torch.save(change(state), folder / name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["loreft", "direft", "consreft"])
def test_a_folder_of_pyreft_is_read(kind, tied, tmp_path):
    settings = {"kind": kind, "start": "random", "tied": tied, "layers": (0, 2), **SMALL}
    model = llama()
    perturb(Editor(model, ReftConfig(**settings)))
    pyreft_folder(tmp_path / "intervenable_model", model)
    config = ReftConfig(kind, start="random", prefix=2, suffix=2)
    found = load_pyreft(llama(), tmp_path, config)
    assert found.config == model.reft.config
    assert torch.equal(found.model(**INPUTS).logits, model(**INPUTS).logits)


def test_a_bad_folder_of_pyreft_is_named(tmp_path):
    model, fresh = llama(), llama()
    perturb(Editor(model, ReftConfig(start="random", layers=(0, 2), **SMALL)))

    def refused(message, change=lambda state: state, config=None):
        pyreft_folder(tmp_path / "it", model, change)
        with pytest.raises(UserError, match=message):
            load_pyreft(fresh, tmp_path / "it", config)
        assert not hasattr(fresh, "reft")

    with pytest.raises(UserError, match="expected files intkey_.*.bin of pyreft, there are none"):
        load_pyreft(fresh, tmp_path)
    refused(
        "rotate_layer: the orthonormal factor must be kept in fp32, got bfloat16",
        lambda state: {**state, "rotate_layer": state["rotate_layer"].bfloat16()},
    )
    refused(
        "expected rotate_layer, weight, bias, got weight, rotate_layer",
        lambda state: {key: state[key] for key in ("weight", "rotate_layer")},
    )
    refused("expected rotate_layer, learned_source, got", config=ReftConfig("lobireft"))
    refused("kind: pyreft keeps no rotate_layer of noreft", config=ReftConfig("noreft"))
    refused("cannot be read as tensors", lambda state: {**state, "code": Editor})
    widths = iter((1, 2))

    def narrowed(state):
        width = next(widths)
        return {**state, "rotate_layer": state["rotate_layer"][:, :width].contiguous()}

    refused("editors of different shapes: rotate_layer", narrowed)
    (tmp_path / "it" / "intkey_layer_0_comp_mlp_output_unit_pos_nunit_1#0.bin").write_bytes(b"")
    refused("expected an edit of a layer's block_output")
