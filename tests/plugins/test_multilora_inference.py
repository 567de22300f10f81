"""Batches of mixed adapters in evaluation: what peft's own loop gives, up to rounding."""

import copy

import multilora_models as models
import pytest
import torch
from multilora_models import peft
from peft.tuners.lora import LoraLayer
from pyext_plugins.multilora import stacks
from pyext_plugins.multilora.mixed import disable, enable, is_enabled

BATCH = ["first", "__base__", "second", "first", "third", "third"]
LINEAR = models.LINEAR
# Sums of fewer than a hundred products in float32, in another order, through two layers.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def logits(model, names, ids=None):
    ids = models.tokens(len(names)) if ids is None else ids
    with torch.no_grad():
        return model(input_ids=ids, adapter_names=names).logits


def check(model, names=BATCH, left_out=()):
    """The same as peft's loop on this batch; returns it."""
    want = logits(model, names)
    assert set(enable(model)) == set(left_out)
    got = logits(model, names)
    torch.testing.assert_close(got, want, **CLOSE)
    return got


CASES = {
    "linear layers": (models.llama, LINEAR),
    "embeddings": (models.llama, ["q_proj", "embed_tokens"]),
    "Conv1D": (models.gpt2, ["c_attn", "c_proj", "c_fc", "wte"]),
}


@pytest.mark.parametrize("base, targets", CASES.values(), ids=CASES)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_outputs_are_those_of_peft(base, targets, trained):
    model = models.adapted(base(), targets).requires_grad_(trained)
    got = check(model)
    with model.disable_adapter(), torch.no_grad():
        base = model(input_ids=models.tokens(len(BATCH))).logits
    assert not any(torch.allclose(got[i], base[i], **CLOSE) for i in (0, 2, 3, 4, 5))


def test_samples_do_not_see_each_other():
    model = models.adapted(models.llama(), LINEAR)
    enable(model)
    together, ids = logits(model, BATCH), models.tokens(len(BATCH))
    for i, name in enumerate(BATCH):
        alone = logits(model, [name], ids[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, **CLOSE)


def test_rows_of_the_base_model_stay_as_they_are():
    model = models.adapted(models.llama(), LINEAR)
    enable(model)
    with model.disable_adapter(), torch.no_grad():
        want = model(input_ids=models.tokens(len(BATCH))).logits
    assert torch.equal(logits(model, ["__base__"] * len(BATCH)), want)
    # Of a batch of others too: a layer's output for the sample is not written.
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    seen = {}
    layer.register_forward_hook(lambda module, args, out: seen.update(x=args[0], out=out))
    logits(model, BATCH)
    base = layer.base_layer(seen["x"])
    assert torch.equal(seen["out"][1], base[1]) and not torch.equal(seen["out"][0], base[0])


@pytest.mark.parametrize("beams", [1, 3])
def test_generation(beams):
    model = models.adapted(models.llama(), LINEAR)
    ids = models.tokens(len(BATCH))
    options = {"num_beams": beams, "max_new_tokens": 5, "do_sample": False}
    options |= {"adapter_names": BATCH, "attention_mask": torch.ones_like(ids)}
    want = model.generate(input_ids=ids, **options)
    enable(model)
    assert torch.equal(model.generate(input_ids=ids, **options), want)


def test_beams_of_an_encoder_decoder():
    model = models.adapted(models.t5(), ["q", "v", "wi", "wo"])
    ids = models.tokens(len(BATCH))
    options = {"num_beams": 2, "max_new_tokens": 4, "do_sample": False, "adapter_names": BATCH}
    want = model.generate(input_ids=ids, **options)
    enable(model)
    assert torch.equal(model.generate(input_ids=ids, **options), want)


def test_more_adapters_than_a_stack_holds(monkeypatch):
    monkeypatch.setattr(stacks, "MAX_RAGGED", 2)
    model = models.adapted(models.llama(), ["q_proj"]).requires_grad_(False)
    check(model)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    memory = {layer.lora_A[n].weight.untyped_storage().data_ptr() for n in models.RANKS}
    assert len(memory) == 2


def test_layers_that_only_some_adapters_have():
    settings = {"first": {"r": 2}, "second": {"r": 4, "target_modules": ["up_proj", "v_proj"]}}
    check(models.adapted(models.llama(), ["q_proj", "v_proj"], settings), ["second", "first"])


def test_biases_and_scalings():
    settings = {
        "first": {"r": 2, "lora_bias": True, "lora_alpha": 1},
        "second": {"r": 15, "lora_alpha": 40, "use_rslora": True},
        "third": {"r": 1, "lora_bias": True},
    }
    base = models.llama()
    for module in base.modules():  # peft warns of a bias where the layer has none
        if isinstance(module, torch.nn.Linear):
            module.bias = torch.nn.Parameter(torch.zeros(module.out_features))
    check(models.adapted(base, ["q_proj", "up_proj"], settings).requires_grad_(False))


@pytest.mark.parametrize("adapters", [torch.float32, torch.bfloat16])
def test_half_precision(adapters):
    model = models.adapted(models.llama(), LINEAR).to(torch.bfloat16)
    if adapters == torch.float32:
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
    want = logits(model, BATCH)
    enable(model)
    # An epsilon of bfloat16 (2^-8) for each of the roundings in the two layers.
    difference = (logits(model, BATCH) - want).float().norm() / want.float().norm()
    assert 0 <= difference < 16 * 2**-8


def test_adapters_of_half_precision_in_a_model_that_is_not():
    model = models.adapted(models.llama(), ["q_proj"])
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.bfloat16()
    want = logits(model, BATCH)
    enable(model)
    assert torch.equal(logits(model, BATCH), want)  # peft's loop, as the inputs are rounded


def test_autocast():
    model = models.adapted(models.llama(), LINEAR)
    with torch.autocast("cpu", torch.bfloat16):
        want = logits(model, BATCH)
        enable(model)
        got = logits(model, BATCH)
    assert got.dtype == want.dtype
    assert (got - want).float().norm() / want.float().norm() < 16 * 2**-8


def test_adapters_come_and_go():
    model = models.adapted(models.llama(), LINEAR).requires_grad_(False)
    enable(model)
    logits(model, BATCH)
    model.add_adapter("fourth", peft.LoraConfig(r=8, target_modules=["q_proj", "lm_head"]))
    models.randomize(model, seed=5)
    check_against_peft(model, ["fourth", "first"])
    model.delete_adapter("second")
    check_against_peft(model, ["fourth", "third"])
    model.add_adapter("second", peft.LoraConfig(r=1, target_modules=["q_proj"]))
    models.randomize(model, seed=6)
    check_against_peft(model, ["second", "first"])
    with pytest.raises(ValueError, match="non-existing adapter"):
        logits(model, ["fifth"])


def check_against_peft(model, names):
    """An enabled model against its own copy that is not; it stays enabled."""
    plain = copy.deepcopy(model)
    disable(plain)
    assert is_enabled(model) and not is_enabled(plain)
    torch.testing.assert_close(logits(model, names), logits(plain, names), **CLOSE)


@pytest.mark.parametrize("trained", [False, True])
def test_weights_that_change(trained):
    model = models.adapted(models.llama(), LINEAR).requires_grad_(trained)
    enable(model)
    before = logits(model, BATCH)
    models.randomize(model, seed=7)  # in place
    assert not torch.allclose(logits(model, BATCH), before, **CLOSE)
    check_against_peft(model, BATCH)
    other = models.adapted(models.llama(), LINEAR, seed=8).state_dict()
    model.load_state_dict(other, assign=True)  # other parameters
    check_against_peft(model, BATCH)
    model.double()  # other memory
    check_against_peft(model, BATCH)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("first", 2.0)
    check_against_peft(model, BATCH)


@pytest.mark.parametrize("trained", [False, True])
def test_parameters_become_views_and_are_given_back(trained):
    model = models.adapted(models.llama(), ["q_proj"]).requires_grad_(trained)
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    enable(model)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj

    def storages(factors):
        return [factors[n].weight.untyped_storage().data_ptr() for n in models.RANKS]

    assert len(set(storages(layer.lora_A))) == 1  # whatever their ranks
    assert len(set(storages(layer.lora_B))) == (3 if trained else 1)
    weight = layer.lora_A["first"].weight
    ranks = sum(layer.r[name] for name in models.RANKS)
    assert weight.untyped_storage().nbytes() == ranks * weight.shape[1] * 4  # without gaps
    disable(model)
    disable(model)
    for name, parameter in model.named_parameters():
        kept, value = before[name]
        assert parameter is kept and torch.equal(parameter, value), name
        size = parameter.untyped_storage().nbytes()
        assert parameter.is_contiguous() and size == parameter.numel() * 4, name


def test_a_model_saved_whole(tmp_path):
    model = models.adapted(models.llama(), ["q_proj"]).requires_grad_(False)
    enable(model)
    want = logits(model, BATCH)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert is_enabled(loaded) and torch.equal(logits(loaded, BATCH), want)


def test_saved_adapters_do_not_take_the_others_with_them(tmp_path):
    model = models.adapted(models.llama(), LINEAR).requires_grad_(False)
    want = logits(model, BATCH)
    enable(model)
    state = peft.get_peft_model_state_dict(model, adapter_name="second")
    assert all(t.untyped_storage().nbytes() == t.numel() * 4 for t in state.values())
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(models.llama(), tmp_path / "first", "first")
    for name in ("second", "third"):
        loaded.load_adapter(tmp_path / name, name)
    torch.testing.assert_close(logits(loaded.eval(), BATCH), want, **CLOSE)


def test_calls_without_names_and_merging_are_as_before():
    model = models.adapted(models.llama(), LINEAR)
    ids = models.tokens(2)
    model.set_adapter("third")
    with torch.no_grad():
        want = model(input_ids=ids).logits
        enable(model)
        torch.testing.assert_close(model(input_ids=ids).logits, want, **CLOSE)
        model.merge_adapter(["third"])
        torch.testing.assert_close(model(input_ids=ids).logits, want, **CLOSE)
    with pytest.raises(ValueError, match="merged"):
        logits(model, ["third"])


def test_layers_the_ops_do_not_serve_keep_the_loop():
    settings = {"first": {"r": 2}, "second": {"r": 2, "use_dora": True}}
    model = models.adapted(models.llama(), ["q_proj"], settings)
    layer = "model.layers.0.self_attn.q_proj"
    assert "'second' is no plain LoRA: DoraLinearVariant" in enable(model)[layer]
    with pytest.raises(ValueError, match="DoRA"):
        logits(model, ["first", "second"])
    assert logits(model, ["first"]).isfinite().all()
    settings = {"first": {"r": 2}, "second": {"r": 20}}
    model = models.adapted(models.llama(), ["q_proj"], settings)
    assert "'second' has rank 20, more than 16" in enable(model)[layer]


def test_an_error_leaves_the_model_as_it_was():
    model = models.adapted(models.llama(), LINEAR)
    enable(model)
    want = logits(model, BATCH)
    with pytest.raises(ValueError, match="Length of `adapter_names`"):
        logits(model, BATCH[:2], models.tokens(3))
    assert torch.equal(logits(model, BATCH), want)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any("_mixed_batch_forward" in vars(module) for module in model.modules())


def test_what_is_no_lora_model_is_refused():
    with pytest.raises(TypeError, match="model: expected a PeftModel, got LlamaForCausalLM"):
        enable(models.llama())
    config = peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    with pytest.raises(NotImplementedError, match="expected LoRA adapters, got IA3Model"):
        disable(peft.get_peft_model(models.llama(), config))
