"""Wrapping backbones: what is trained, what comes out, what is refused."""

import copy

import pytest
import torch
from pyext_plugins.blocks import find_layers
from pyext_plugins.side.config import LadderConfig, SherlConfig, UniptConfig, config_from_json
from pyext_plugins.side.model import SideModel, attach
from pyext_plugins.side.taps import collect

from tests.plugins.side_models import (
    HIDDEN,
    LAYERS,
    bert,
    bert_classifier,
    clip_image,
    clip_text,
    images,
    t5_encoder,
    text,
    transformers,
    vit,
)

UNIPT, JOINT, TOKEN = (UniptConfig(preset=p) for p in ("bert_seq", "joint_vl", "clip_token"))
SHERL, GATED, LADDER = SherlConfig(), SherlConfig(down="gated"), LadderConfig(reduction=2)
SEQUENCES = [
    *[(bert, text, config) for config in (UNIPT, JOINT, SHERL, GATED, LADDER)],
    *[(vit, images, config) for config in (UNIPT, SHERL, LADDER)],
    *[(t5_encoder, text, config) for config in (UNIPT, SHERL, GATED, LADDER)],
    *[(clip_text, text, config) for config in (UNIPT, TOKEN, SHERL)],
    *[(clip_image, lambda: images(3), config) for config in (UNIPT, TOKEN, SHERL)],
]
names = [f"{make.__name__}-{config.method}-{i}" for i, (make, _, config) in enumerate(SEQUENCES)]


@pytest.mark.parametrize(("make", "inputs", "config"), SEQUENCES, ids=names)
def test_the_output_is_adapted_and_the_backbone_is_not(make, inputs, config):
    backbone, given = make().eval(), inputs()
    with torch.no_grad():
        plain = backbone(**given)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    model = SideModel(backbone, config).train()
    if config.method == "sherl":  # so that some tap is relevant to every token
        torch.nn.init.ones_(model.side.gate.bias)
    output = model(**given)
    assert type(output) is type(plain) and list(output) == list(plain)
    assert all(output[name].shape == plain[name].shape for name in plain)
    assert all(not torch.equal(output[name], plain[name]) for name in plain)
    sum(tensor.square().sum() for tensor in output.values()).backward()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    dead = {"gate.bias"} if config.method == "unipt" else set()  # a softmax sees no shift
    for name, parameter in model.side.named_parameters():
        assert name in dead or parameter.grad.any(), name
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not backbone.training


@pytest.mark.parametrize("config", [UNIPT, LADDER])
def test_autograd_keeps_nothing_of_the_backbone(config):
    model = SideModel(bert(), config)
    inside = []
    for module in model.backbone.modules():
        module.register_forward_hook(lambda *call: inside.append(torch.is_grad_enabled()))
    model(**text()).last_hidden_state.sum().backward()
    # The pooler runs a second time, on the adapted states, for a gradient to pass through it.
    pooler = len(list(model.backbone.pooler.modules()))
    assert inside[-pooler:] == [True] * pooler and not any(inside[:-pooler])


def test_sherl_keeps_the_last_block_alone():
    model = SideModel(bert(), SHERL)
    layers, seen = model.layers, []
    for layer in layers:
        layer.register_forward_hook(lambda m, a, output: seen.append(output.requires_grad))
    model(**text())
    assert seen == [False] * (LAYERS - 1) + [True]


def test_taps_are_the_hidden_states():
    backbone = bert().eval()
    with torch.no_grad(), collect(find_layers(backbone), range(LAYERS + 1)) as found:
        output = backbone(**text(), output_hidden_states=True)
    assert sorted(found) == list(range(LAYERS + 1))
    for k, hidden in enumerate(output.hidden_states):
        assert torch.equal(found[k], hidden)


def test_hooks_are_gone_after_a_run():
    model = SideModel(bert(), SHERL)
    model(**text())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.backbone.modules())
    with pytest.raises(Exception, match="input_ids"):
        model()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.backbone.modules())


@pytest.mark.parametrize("config", [UNIPT, JOINT, SHERL, GATED, LADDER])
def test_from_taps_of_before_it_is_the_same(config):
    model, given = SideModel(bert(), config).eval(), text()
    whole = model(**given)
    again = model(**given, taps=model.hidden_states(**given))
    for name in ("last_hidden_state", "pooler_output"):
        assert torch.equal(whole[name], again[name])
    assert len(model.layers) == LAYERS


def test_what_a_token_that_does_not_count_holds_does_not_matter():
    for config in (UNIPT, SHERL, LADDER):
        model, given = SideModel(bert(), config).eval(), text()
        other = copy.deepcopy(given)
        other["input_ids"][1, 5:] = 9
        first, second = model(**given)[0][1, :5], model(**other)[0][1, :5]
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_fewer_taps():
    model = SideModel(bert(), UniptConfig(taps=(0, 2)))
    assert len(model.side.down) == 2
    model(**text())
    for config, message in (
        (UniptConfig(taps=(0, 4)), "taps: expected numbers from 0 to 3, got \\[0, 4\\]"),
        (SherlConfig(taps=(0, 1)), "taps: the last must be 2, the input of the late layer, got 1"),
        (SherlConfig(taps=(2,)), "sherl needs at least one shallow tap plus a guide"),
    ):
        with pytest.raises(ValueError, match=message):
            SideModel(bert(), config)


def test_sherl_starts_with_the_late_input_switched_off():
    model = SideModel(bert(), SHERL).eval()
    assert float(model.side.gamma.detach()) == 0
    taps = model.hidden_states(**text())
    y = model.side(taps, taps[-1])
    assert torch.equal(y, model.side(taps, torch.zeros_like(taps[-1])))
    y.sum().backward()
    expected = taps[-1].sum() / 0.1  # d tanh(gamma / T) / d gamma is 1 / T at 0
    torch.testing.assert_close(model.side.gamma.grad[0], expected, rtol=1e-4, atol=1e-3)
    assert 0 <= model.side.dead_tokens <= 1


def test_the_late_layer_must_be_reached():
    model = SideModel(bert(), SHERL)
    model.layers[-1].register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(RuntimeError, match="the late layer output does not require grad; check"):
        model(**text())


def test_parity_mode_leaves_the_dropout_on():
    model = SideModel(bert(), UniptConfig(backbone_dropout=True)).train()
    assert model.backbone.training and not model.eval().backbone.training


def test_a_model_with_a_head_is_changed_inside():
    model = attach(bert_classifier(), UNIPT)
    assert isinstance(model, transformers.BertForSequenceClassification)
    assert isinstance(model.bert, SideModel)
    output = model(**text(), labels=torch.tensor([0, 1, 0]))
    output.loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    assert {name.split(".")[0] for name in trained} == {"bert", "classifier"}
    assert all(".side." in name for name in trained if name.startswith("bert"))


def test_a_projected_tower_is_wrapped_whole_or_inside():
    whole = attach(clip_text(projected=True), TOKEN)
    assert isinstance(whole, SideModel) and whole(**text()).text_embeds.shape == (3, 8)
    inside = attach(clip_text(projected=True), UNIPT)
    assert isinstance(inside.text_model, SideModel) and inside(**text()).text_embeds.requires_grad
    with pytest.raises(ValueError, match="projects its summary after its blocks; wrap the tower"):
        SideModel(clip_image(projected=True), UNIPT)


def test_the_token_preset_adapts_the_summary_alone():
    backbone, given = clip_text().eval(), text()
    with torch.no_grad():
        plain = backbone(**given)
    output = SideModel(backbone, TOKEN).eval()(**given)
    assert torch.equal(output.last_hidden_state[:, 4], output.pooler_output)
    others = [0, 1, 2, 3, 5, 6]
    assert torch.equal(output.last_hidden_state[:, others], plain.last_hidden_state[:, others])


def test_causal_backbones_are_refused_where_tokens_see_later_ones():
    def gpt2():
        return transformers.GPT2Model(
            transformers.GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=50)
        )

    for config in (UNIPT, LADDER):
        with pytest.raises(ValueError, match=f"{config.method} is not causal: its tokens see"):
            SideModel(gpt2(), config)
    model, ids = SideModel(gpt2(), SHERL).eval(), text()["input_ids"]
    other = ids.clone()
    other[:, 5:] = 1
    first, second = (model(input_ids=i).last_hidden_state[:, :5] for i in (ids, other))
    torch.testing.assert_close(first, second)


def test_no_valid_token_is_an_error():
    given = text()
    given["attention_mask"][1] = 0
    with pytest.raises(ValueError, match="unipt: sample 1 has 0 valid tokens"):
        SideModel(bert(), UNIPT)(**given)


def test_a_costly_attention_is_warned_of(monkeypatch):
    monkeypatch.setattr("pyext_plugins.side.unipt.COSTLY", 100)
    with pytest.warns(UserWarning, match="unipt: attention between 7 tokens takes"):
        SideModel(bert(), UNIPT)(**text())


def test_layers_are_found_or_named():
    assert len(find_layers(bert())) == LAYERS
    both = transformers.T5Model(
        transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2)
    )
    with pytest.raises(ValueError, match="found encoder.block, decoder.block; say which"):
        find_layers(both)
    assert find_layers(both, "encoder.block") is both.encoder.block
    with pytest.raises(ValueError, match="layers: T5Model has no 'coder.block'"):
        find_layers(both, "coder.block")
    with pytest.raises(ValueError, match="layers: expected a ModuleList, 'encoder' is T5Stack"):
        find_layers(both, "encoder")


def test_it_looks_like_peft():
    model = SideModel(bert(), UNIPT)
    trained, total = model.get_nb_trainable_parameters()
    assert trained == sum(p.numel() for p in model.side.parameters())
    assert total - trained == sum(p.numel() for p in bert().parameters())
    given = text()
    with model.disable_adapter():
        off = model(**given).last_hidden_state
    assert torch.equal(off, model.backbone(**given).last_hidden_state)
    assert not torch.equal(model(**given).last_hidden_state, off)
    assert model.config.hidden_size == HIDDEN  # what it does not have is the backbone's
    assert isinstance(model(**given, return_dict=False), tuple)


def test_peft_takes_no_tuner_from_outside():
    peft = pytest.importorskip("peft")
    for config in (UNIPT, SHERL, LADDER):
        with pytest.raises(ValueError, match="Unknown PEFT type"):
            peft.utils.register_peft_method(
                name=config.method, config_cls=type(config), model_cls=SideModel
            )


def test_configs_refuse_what_they_cannot_be():
    for make, message in (
        (lambda: UniptConfig(reduction=0), "reduction: expected at least 1, got 0"),
        (lambda: UniptConfig(taps=(1, 0)), r"taps: expected rising numbers, got \[1, 0\]"),
        (lambda: UniptConfig(preset="bert"), "preset: expected one of bert_seq, joint_vl, clip_"),
        (lambda: SherlConfig(down="deep"), "down: expected one of plain, gated, got 'deep'"),
        (lambda: SideModel(bert(), UniptConfig(reduction=17)), "reduction: expected at most 16"),
        (lambda: SideModel(bert(), LadderConfig(reduction=4, heads=3)), "heads: expected a divis"),
        (lambda: config_from_json({"method": "lora"}), "method: expected one of unipt, sherl, lst"),
        (lambda: config_from_json({"method": "lst", "preset": "x"}), "lst: .*preset"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    for config in (JOINT, GATED, LADDER, UniptConfig(taps=(0, 3))):
        assert config_from_json(config.as_json()) == config
