"""Adapters read without peft and written for it: peft itself is the judge of both."""

import pytest
import torch
from pyext_plugins.iteris.adapters import LowRank, load_adapter, save_adapter
from safetensors.torch import load_file, save_file

from pyext.errors import UserError
from tests.plugins import merging
from tests.plugins.merging import peft


def deltas_in_peft(kind, folder):
    model = peft.PeftModel.from_pretrained(merging.base(kind), folder)
    found = {}
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            delta = module.get_delta_weight("default")
            found[name] = delta.T if kind == "gpt2" else delta
    return found


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("rslora", [False, True])
def test_reads_what_peft_wrote(kind, rslora, tmp_path):
    target = merging.TARGETS[kind][0]
    patterns = {"rank_pattern": {target: 2}, "alpha_pattern": {target: 5}}
    merging.lora(kind, 1, tmp_path / "a", use_rslora=rslora, named="tiny", **patterns)
    adapter = load_adapter(tmp_path / "a")
    wanted = deltas_in_peft(kind, tmp_path / "a")
    assert adapter.name == "a" and adapter.base == "tiny"
    assert set(adapter.modules) == set(wanted)
    assert {update.rank for update in adapter.modules.values()} == {2, 4}
    for name, update in adapter.modules.items():
        assert update.shape == tuple(wanted[name].shape)
        torch.testing.assert_close(update.delta().float(), wanted[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_peft_loads_what_is_written(kind, tmp_path):
    merging.lora(kind, 1, tmp_path / "a", rank_pattern={merging.TARGETS[kind][0]: 2})
    modules = load_adapter(tmp_path / "a").modules
    config = {"fan_in_fan_out": kind == "gpt2"}
    save_adapter(tmp_path / "b", modules, base="tiny", config=config)
    again = load_adapter(tmp_path / "b")
    assert again.base == "tiny" and {update.scale for update in again.modules.values()} == {1.0}
    wanted, found = (deltas_in_peft(kind, tmp_path / name) for name in "ab")
    assert set(wanted) == set(found)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-6, rtol=1e-5)


def test_a_module_named_inside_another_keeps_its_rank(tmp_path):
    updates = {
        "q": LowRank(torch.ones(1, 3), torch.ones(2, 1)),
        "x.q": LowRank(torch.ones(2, 3), torch.ones(2, 2)),
        "y.k": LowRank(torch.ones(3, 3), torch.ones(2, 3)),
        "y.v": LowRank(torch.ones(3, 3), torch.ones(2, 3)),
    }
    save_adapter(tmp_path / "a", updates)
    found = load_adapter(tmp_path / "a").modules
    assert {name: update.rank for name, update in found.items()} == {
        name: update.rank for name, update in updates.items()
    }


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    updates = {"q": LowRank(torch.ones(1, 3), torch.ones(2, 1))}

    def full(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"--output: cannot write to .*out: .*No space left"):
        save_adapter(tmp_path / "out", updates, beside=full)
    assert list(tmp_path.iterdir()) == []
    save_adapter(tmp_path / "out", updates)
    with pytest.raises(UserError, match="out exists already"):
        save_adapter(tmp_path / "out", updates)


@pytest.fixture
def folder(tmp_path):
    return merging.lora("bert", 1, tmp_path / "a")


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"use_dora": True}, r"it has DoRA on encoder\.layer\.0\.attention\.self\.query, .* more"),
        ({"bias": "all"}, r"trained biases \(bias='all'\) on encoder"),
        ({"lora_bias": True}, "a bias in B on encoder"),
        ({"modules_to_save": ["classifier"]}, r"\(modules_to_save\) on classifier"),
        ({"target_parameters": ["experts.w1"]}, r"\(target_parameters\) on experts\.w1"),
        ({"trainable_token_indices": [1, 2]}, r"trained embeddings .* on 1, 2"),
        ({"init_lora_weights": "pissa"}, r"changes the base's weights .*'pissa'\) on encoder"),
        ({"peft_type": "IA3"}, "expected an adapter of type LORA, got 'IA3'"),
        ({"lora_alpha": None}, "lora_alpha of encoder.*: expected a number above 0, got None"),
        ({"r": 3}, r"query: expected rank 3, as its config says, got lora_A \[4, 16\]"),
    ],
)
def test_refuses_a_config(folder, entries, message):
    merging.change_config(folder, **entries)
    with pytest.raises(UserError, match=message):
        load_adapter(folder)


QUERY = "base_model.model.encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    "change, message",
    [
        ({f"{QUERY}.lora_magnitude_vector": torch.ones(16)}, "it has DoRA on encoder.layer.0"),
        ({f"{QUERY}.bias": torch.ones(16)}, "trained biases on encoder.layer.0.attention.self.q"),
        ({"base_model.model.emb.lora_embedding_A": torch.ones(2, 2)}, "trained embeddings on emb"),
        ({"strange.weight": torch.ones(2)}, "got 1 more keys: strange.weight"),
        ({f"{QUERY}.lora_A.weight": None}, "query: expected lora_A and lora_B, got lora_B alone"),
        ({f"{QUERY}.lora_A.weight": torch.full((4, 16), torch.nan)}, "lora_A has .* not finite"),
        ({f"{QUERY}.lora_A.weight": torch.ones(4, 16, 1, 1)}, r"matrices.*\(convolutions are not"),
        ({f"{QUERY}.lora_B.weight": torch.ones(16, 4).int()}, "lora_B: expected floating-point"),
    ],
)
def test_refuses_weights(folder, change, message):
    path = folder / "adapter_model.safetensors"
    tensors = {**load_file(path), **change}
    save_file({key: value for key, value in tensors.items() if value is not None}, path)
    with pytest.raises(UserError, match=message):
        load_adapter(folder)


def test_refuses_broken_files(folder):
    path = folder / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors cannot be read: .*") as raised:
        load_adapter(folder)
    assert "\n" not in str(raised.value)
    path.unlink()
    (folder / "adapter_model.bin").touch()
    with pytest.raises(UserError, match="expected a file .*; .* is a pickle, which is never read"):
        load_adapter(folder)
    path.write_bytes(content)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json: expected JSON"):
        load_adapter(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"adapter_config\.json cannot be read: No such file"):
        load_adapter(folder)
    with pytest.raises(UserError, match="expected the folder of an adapter, there is none"):
        load_adapter(folder / "none")
