"""Adapters on disk, the authors' names, and the training loops of others."""

import json
import re

import pytest
import torch
from pyext_plugins.side.author_keys import from_authors
from pyext_plugins.side.cnn_sides import SherlStages, UniptStages
from pyext_plugins.side.config import LadderConfig, SherlConfig, UniptConfig
from pyext_plugins.side.files import load_adapter, save_adapter
from pyext_plugins.side.model import SideModel, attach
from pyext_plugins.side.sherl import SherlSide
from pyext_plugins.side.unipt import UniptSide
from safetensors.torch import load_file

from pyext.errors import UserError
from tests.plugins.side_models import bert, bert_classifier, text, transformers

CONFIGS = [
    UniptConfig(),
    UniptConfig(preset="joint_vl", reduction=4, taps=(0, 2, 3)),
    SherlConfig(),
    SherlConfig(down="gated"),
    LadderConfig(reduction=2, heads=2),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_an_adapter_comes_back_from_its_folder(config, tmp_path):
    model = SideModel(bert(), config).eval()
    model.save_pretrained(tmp_path / "new" / "folder")
    again = SideModel.from_pretrained(bert(), tmp_path / "new" / "folder")
    assert again.side_config == config
    first, second = model(**text()), again(**text())
    assert torch.equal(first.last_hidden_state, second.last_hidden_state)
    saved = load_file(tmp_path / "new" / "folder" / "adapter_model.safetensors")
    assert set(saved) == {f"side.{name}" for name in model.side.state_dict()}
    content = json.loads((tmp_path / "new" / "folder" / "adapter_config.json").read_text())
    assert content["peft_type"] == config.method.upper()


def test_a_head_is_saved_too(tmp_path):
    model = attach(bert_classifier(), UniptConfig())
    torch.nn.init.normal_(model.classifier.weight)
    save_adapter(model, tmp_path, labels=["no", "yes"])
    again = load_adapter(bert_classifier(), tmp_path)
    model.eval()
    assert torch.equal(model(**text()).logits, again(**text()).logits)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["labels"] == ["no", "yes"]


def test_folders_that_do_not_fit_are_refused(tmp_path):
    SideModel(bert(), UniptConfig()).save_pretrained(tmp_path)

    def refused(message, model=None):
        with pytest.raises(UserError, match=message):
            load_adapter(bert() if model is None else model, tmp_path)

    refused("the side network belongs to another backbone, unnamed: its weights have", bert(seed=1))
    refused("not the weights of this model: ", bert_classifier())
    with pytest.raises(UserError, match="adapter_config.json cannot be read: No such file"):
        load_adapter(bert(), tmp_path / "nothing")
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    refused("adapter_model.safetensors cannot be read: ")
    weights.write_bytes(whole)
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "side": {**content["side"], "reduction": 4}}))
    refused(re.escape("side.down.0.bias: expected shape [4], got [8]"))
    config.write_text("{}")
    refused("adapter_config.json: not the config of a side network: 'side'")


def rename(state, names):
    """Ours to theirs, by the card's list of names."""
    theirs = {}
    for name, tensor in state.items():
        for ours, other in names:
            if found := re.fullmatch(ours, name):
                theirs[found.expand(other)] = tensor
                break
        else:
            for k, row in enumerate(tensor):  # the norms' weights, stacked here
                field = name.removeprefix("norm")[1:]
                theirs[names[0][1].replace(r"\1", str(k)).replace("0.\\2", f"1.{field}")] = row
    return theirs


UNIPT_NAMES = [
    (r"down\.(\d+)\.(\w+)", r"downsample_layers.\1.0.\2"),
    (r"gate\.(\w+)", r"gate_layer.\1"),
    (r"proj\.0\.(\w+)", r"projection_layer.0.\1"),
    (r"proj\.1\.(\w+)", r"projection_layer.2.\1"),
    (r"proj_norm\.(\w+)", r"projection_layer.3.\1"),
    (r"up\.(\w+)", r"upsample_layer.1.\1"),
]
SHERL_NAMES = [
    (r"down\.(\d+)\.(\w+)", r"hor_block.\1.fc.0.\2"),
    (r"gate\.(\w+)", r"guide_block.fc_attn.\1"),
    (r"up\.(\w+)", r"fc_out.1.\1"),
    (r"up_norm\.(\w+)", r"fc_out.2.\1"),
    (r"gamma", r"gate_params"),
]
GATED_NAMES = [
    (r"down\.(\d+)\.(\w+)", r"hor_block.\1.fc1.\2"),
    (r"value\.(\d+)\.(\w+)", r"hor_block.\1.fc2.\2"),
    (r"open\.(\d+)\.(\w+)", r"hor_block.\1.fc3.\2"),
    *SHERL_NAMES[1:],
]


UNIPT_STAGE_NAMES = [
    *UNIPT_NAMES[:2],
    (r"query\.(\d+)\.(\w+)", r"identity_layers.\1.0.\2"),
    (r"proj\.(\w+)", r"projection_layer.0.\1"),
    (r"proj_norm\.(\w+)", r"projection_layer.1.\1"),
    UNIPT_NAMES[-1],
]
SHERL_STAGE_NAMES = [
    (r"down\.(\d+)\.(\w+)", r"hor_block.\1.conv.0.\2"),
    (r"gate\.(\w+)", r"guide_block.fc_attn.\1"),
    (r"up\.(\w+)", r"conv_out.0.\1"),
    (r"up_norm\.(\w+)", r"conv_out.1.\1"),
    (r"gamma", r"gate_params"),
]


@pytest.mark.parametrize(
    ("side", "method", "names"),
    [
        (UniptSide([6] * 12, 4, 6), "unipt", UNIPT_NAMES),
        (UniptSide([6] * 3, 4, 6, "joint_vl"), "unipt", UNIPT_NAMES),
        (SherlSide([6] * 3, 4, 6), "sherl", SHERL_NAMES),
        (SherlSide([6] * 3, 4, 6, gated=True), "sherl", GATED_NAMES),
        (UniptStages([3, 5, 6], 4, 6), "unipt", UNIPT_STAGE_NAMES),
        (SherlStages([3, 5, 6], 4), "sherl", SHERL_STAGE_NAMES),
    ],
    ids=["unipt", "unipt-mlp", "sherl", "sherl-gated", "unipt-stages", "sherl-stages"],
)
def test_the_authors_names_are_understood(side, method, names):
    for parameter in side.parameters():
        torch.nn.init.normal_(parameter)
    state = side.state_dict()
    for name, tensor in state.items():
        if name.startswith("norm.running"):
            tensor.normal_()
    theirs = {f"module.side.{name}": tensor for name, tensor in rename(state, names).items()}
    theirs["module.other"] = torch.zeros(1)
    found = from_authors(method, theirs, prefix="module.side.")
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    side.load_state_dict(found)


def test_clip_vil_numbers_its_taps_apart():
    state = {f"side_first_downsample_l.{i}.{f}": torch.randn(4) for i in (0, 1) for f in ("bias",)}
    state["side_first_downsample_l.0.weight"] = torch.randn(4, 6, 1, 1)
    state["side_first_downsample_l.1.weight"] = torch.randn(4)
    state |= {f"side_downsamples_l.0.{i}.bias": torch.randn(4) for i in (0, 1)}
    state |= {"side_downsamples_l.0.0.weight": torch.randn(4, 6)}
    state |= {"side_downsamples_l.0.1.weight": torch.randn(4)}
    found = from_authors("unipt", state)
    assert found["down.0.weight"].shape == (4, 6) and found["norm_weight"].shape == (2, 4)
    assert torch.equal(found["down.1.weight"], state["side_downsamples_l.0.0.weight"])
    assert torch.equal(found["norm_bias"][0], state["side_first_downsample_l.1.bias"])
    with pytest.raises(ValueError, match="state: 'encoder.x' is not a name of the authors' side"):
        from_authors("unipt", {"encoder.x": torch.zeros(1)})


class Sentences(torch.utils.data.Dataset):
    """Whether the first token is in the upper half of the vocabulary."""

    def __init__(self, count):
        self.ids = torch.randint(0, 48, (count, 6), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        ids = self.ids[i]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[0] // 24}


@pytest.mark.parametrize("config", [UniptConfig(), SherlConfig(), LadderConfig(reduction=2)])
def test_a_trainer_trains_the_side_network_alone(config, tmp_path):
    pytest.importorskip("accelerate")
    model = attach(bert_classifier(), config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=8,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        learning_rate=1e-2,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=Sentences(32))
    trainer.train()
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    wanted = {n for n, p in model.named_parameters() if p.requires_grad} - {"bert.side.gate.bias"}
    assert wanted <= changed and not any(".backbone." in name for name in changed)
    assert trainer.evaluate(Sentences(8))["eval_loss"] > 0
    trainer.save_model(str(tmp_path / "whole"))
    assert "classifier.weight" in load_file(tmp_path / "whole" / "model.safetensors")
