"""Many LoRAs trained in one step: gradients are those of training each alone."""

import multilora_models as models
import pytest
import torch
from multilora_models import transformers
from pyext_plugins.multilora.mixed import disable, enable
from torch import nn

BATCH = ["first", "third", "first", "__base__", "second"]
# In float64, where what differs by the order of sums is far below what a wrong formula gives.
CLOSE = {"rtol": 1e-8, "atol": 1e-12}


def losses(model, ids, names=None):
    """Of every sample."""
    more = {} if names is None else {"adapter_names": names}
    logits = model(input_ids=ids, **more).logits[:, :-1]
    found = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return found.mean(1)


def gradients(model):
    """By name, of what has a gradient; they are taken away."""
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def alone(model, names, ids):
    """Gradients of each adapter on its own samples, by peft."""
    found = {}
    for name in dict.fromkeys(names):
        if name == "__base__":
            continue
        model.set_adapter(name)
        own = ids[[i for i, sample in enumerate(names) if sample == name]]
        losses(model, own).sum().backward()
        found |= gradients(model)
    model.set_requires_grad(list(models.RANKS))
    return found


def check_gradients(model, names=BATCH):
    model.double().train()
    ids = models.tokens(len(names))
    want = alone(model, names, ids)
    enable(model)
    losses(model, ids, names).sum().backward()
    got = gradients(model)
    assert set(got) == set(want)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, want[name], **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


CASES = {
    "linear layers": (models.llama, models.LINEAR),
    "embeddings": (models.llama, ["v_proj", "embed_tokens"]),
    "Conv1D": (models.gpt2, ["c_attn", "c_proj"]),
}


@pytest.mark.parametrize("base, targets", CASES.values(), ids=CASES)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_gradients_are_those_of_each_adapter_alone(base, targets):
    model = models.adapted(base(), targets)
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # GPT-2's own
            module.p = 0.0
    check_gradients(model)


def test_an_adapter_without_samples_has_no_gradient():
    model = models.adapted(models.llama(), models.LINEAR).train()
    enable(model)
    losses(model, models.tokens(2), ["first", "second"]).sum().backward()
    assert not any("third" in name for name in gradients(model))


def test_biases_have_gradients():
    settings = {name: {"r": r, "lora_bias": r > 2} for name, r in models.RANKS.items()}
    base = models.llama()
    for module in base.modules():
        if isinstance(module, nn.Linear):
            module.bias = nn.Parameter(torch.zeros(module.out_features))
    check_gradients(models.adapted(base, ["v_proj", "down_proj"], settings))


def test_square_layers_have_gradients_the_right_way_round():
    settings = {name: {"r": 16} for name in models.RANKS}
    check_gradients(models.adapted(models.llama(), ["q_proj"], settings))


def test_modules_that_are_trained_whole():
    settings = {n: {"r": r, "modules_to_save": ["lm_head"]} for n, r in models.RANKS.items()}
    check_gradients(models.adapted(models.llama(), ["q_proj"], settings))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_know_their_adapters_in_the_backward(reentrant):
    model = models.adapted(models.llama(), models.LINEAR).train()
    enable(model)
    ids = models.tokens(len(BATCH))
    losses(model, ids, BATCH).sum().backward()
    want = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    both = losses(model, ids, BATCH).sum()
    other = losses(model, ids, BATCH[::-1]).sum()  # before the first went back
    both.backward()
    got = gradients(model)
    assert set(got) == set(want)
    assert all(torch.equal(got[name], want[name]) for name in got)
    other.backward()


def test_a_step_of_all_is_a_step_of_each():
    """Under an optimizer with momentum and decay, which acts on gradients of zero as well."""
    batches = [["first", "second"], ["third", "first"], ["first", "__base__"]]
    ids = models.tokens(2)
    together = models.adapted(models.llama(), models.LINEAR).train()
    optimizer = torch.optim.AdamW([p for p in together.parameters() if p.requires_grad], lr=1e-2)
    enable(together)
    for names in batches:
        losses(together, ids, names).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name in models.RANKS:
        one = models.adapted(models.llama(), models.LINEAR).train()
        one.set_adapter(name)
        optimizer = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=1e-2)
        for names in batches:
            own = ids[[i for i, sample in enumerate(names) if sample == name]]
            if len(own):
                losses(one, own).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        trained = dict(together.named_parameters())
        for key, parameter in one.named_parameters():
            if f".{name}." in key:
                # Adam's first steps have the sign of the gradient, so rounding is not magnified
                # but where a gradient is of its own rounding's size.
                torch.testing.assert_close(trained[key], parameter, rtol=1e-3, atol=1e-4)


def test_a_fused_optimizer_finds_its_parameters_as_they_were():
    """It takes the layout of its state to be that of the parameter, whatever happens between."""

    def trained(between):
        model = models.adapted(models.llama(), models.LINEAR).double().train()
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=True
        )
        for i, name in enumerate(["first", "second", "first", "second"]):
            model.set_adapter(name)
            losses(model, models.tokens(2, seed=i)).sum().backward()
            between(model)
            optimizer.step()
            optimizer.zero_grad()
            between(model)
        return {name: p.detach() for name, p in model.named_parameters() if "lora_" in name}

    def look(model):
        enable(model)
        with torch.no_grad():
            model.eval()(input_ids=models.tokens(len(BATCH)), adapter_names=BATCH)
        model.train()

    want, got = trained(lambda model: None), trained(look)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-6, atol=1e-9)


def test_an_update_between_forward_and_backward_is_an_error():
    model = models.adapted(models.llama(), ["q_proj"]).train()
    enable(model)
    loss = losses(model, models.tokens(1), ["first"]).sum()
    models.randomize(model, seed=3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_dropout_is_that_of_each_adapter():
    """Of a layer whose output is the sum of its kept inputs, times what dropout multiplies with."""
    layer = nn.Sequential(nn.Linear(64, 1, bias=False))
    nn.init.zeros_(layer[0].weight)
    settings = {
        "first": {"r": 1, "lora_dropout": 0.5},
        "second": {"r": 1},
        "third": {"r": 1, "lora_dropout": 1.0},
    }
    model = models.adapted(layer, ["0"], settings).train()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.ones_(parameter)
    enable(model)
    names = ["first", "second", "third", "__base__"]
    scaling = model.base_model.model[0].scaling["first"]
    torch.manual_seed(0)
    outputs = model(torch.ones(4, 50, 64), adapter_names=names)[..., 0] / scaling
    first, second, third, base = outputs.detach()
    assert (second == 64).all() and (third == 0).all() and (base == 0).all()
    assert (first % 2 == 0).all() and len(first.unique()) > 3
    assert abs(float(first.mean()) - 64) < 5 * 8 / 50**0.5  # of 64 the deviation is 8
    model.eval()
    assert (model(torch.ones(4, 3, 64), adapter_names=names)[:3] == 64 * scaling).all()


def test_training_after_inference():
    model = models.adapted(models.llama(), models.LINEAR).train()
    enable(model)
    ids = models.tokens(len(BATCH))
    losses(model, ids, BATCH).sum().backward()
    want = gradients(model)
    model = models.adapted(models.llama(), models.LINEAR)
    with torch.inference_mode():
        enable(model)
        model(input_ids=ids, adapter_names=BATCH)
    losses(model.train(), ids, BATCH).sum().backward()
    got = gradients(model)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_trainer_passes_the_names_on(tmp_path):
    pytest.importorskip("accelerate")
    model = models.adapted(models.llama(), ["q_proj", "v_proj"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    enable(model)

    def collate(rows):
        ids = torch.stack([row["ids"] for row in rows])
        return {"input_ids": ids, "labels": ids, "adapter_names": [row["name"] for row in rows]}

    ids = models.tokens(4)
    rows = [{"ids": ids[i], "name": name} for i, name in enumerate(["first", "second"] * 2)]
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=4, remove_unused_columns=False,
        use_cpu=True, report_to=[], disable_tqdm=True, learning_rate=1e-2, save_strategy="no",
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=rows, data_collator=collate).train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[-2] for name in changed} == {"first", "second"}


def test_frozen_adapters_are_refused_in_training():
    model = models.adapted(models.llama(), ["q_proj"]).train()
    model.set_adapter("first")
    enable(model)
    with pytest.raises(
        ValueError, match=r"adapter_names: adapter 'second' is frozen.*set_requires"
    ):
        model(input_ids=models.tokens(2), adapter_names=["first", "second"])
    with torch.no_grad():  # as a reference model is
        model(input_ids=models.tokens(2), adapter_names=["first", "second"])
    model.eval()(input_ids=models.tokens(2), adapter_names=["first", "second"])


def test_peft_still_refuses_training_once_disabled():
    model = models.adapted(models.llama(), ["q_proj"]).train()
    enable(model)
    disable(model)
    with pytest.raises(ValueError, match="training mode"):
        model(input_ids=models.tokens(1), adapter_names=["first"])
