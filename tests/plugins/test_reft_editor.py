"""Editors inside models: what they compute, where, and what stays as it was."""

import copy

import pytest
import torch
from pyext_plugins.reft.config import KINDS, ReftConfig
from pyext_plugins.reft.model import Editor

from tests.plugins.reft_models import llama, perturb, tokens
from tests.plugins.side_models import HIDDEN, LAYERS, bert, transformers, vit

SMALL = {"rank": 2, "prefix": 2, "suffix": 2}


def states(model, **inputs):
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True, use_cache=False).hidden_states


def edit_by_hand(kind, h, R, W, b, f=lambda s: s, mrt=False):
    """One hidden state after another, as the papers write it."""
    subtracts = KINDS[kind].subtracts
    s = b if W is None else W @ h + b
    inside = R @ h if subtracts else 0
    u = f(s - inside) if mrt else f(s) - inside
    return h + R.T @ u


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_an_editor_computes_its_equation_where_it_stands(kind, tied):
    config = ReftConfig(kind, start="random", tied=tied, layers=(1,), **SMALL)
    model, inputs = llama(), tokens([5, 7])
    before = states(model, **inputs)
    editor = perturb(Editor(model, config))
    after = states(model, **inputs)
    stack = editor.stacks["blocks"]
    R = torch.linalg.qr(stack.X.mT).Q.mT
    R = R * (R @ stack.X.mT).diagonal(dim1=1, dim2=2).sign().unsqueeze(-1)
    R = R if KINDS[kind].orthonormal else stack.X
    assert all(torch.equal(a, b) for a, b in zip(before[:2], after[:2], strict=True))
    for row, n in enumerate((5, 7)):
        for token in range(7):
            h = before[2][row, token]
            if token in (0, 1, n - 2, n - 1):
                e = 1 if not tied and token > 1 else 0
                h = edit_by_hand(kind, h, R[e], None if stack.W is None else stack.W[e], stack.b[e])
                torch.testing.assert_close(after[2][row, token], h, rtol=1e-4, atol=1e-5)
            else:
                assert torch.equal(after[2][row, token], h)


@pytest.mark.parametrize("form", ["reft", "mrt"])
def test_the_activation_stands_where_the_form_says(form):
    config = ReftConfig(act="gelu", form=form, start="random", layers=(0,), **SMALL)
    model, inputs = llama(), tokens([6])
    h = states(model, **inputs)[1][0, 0]
    stack = perturb(Editor(model, config)).stacks["blocks"]
    R = model.reft.factors()["blocks"].B[0]
    wanted = edit_by_hand(
        "loreft", h, R, stack.W[0], stack.b[0], torch.nn.functional.gelu, form == "mrt"
    )
    torch.testing.assert_close(states(model, **inputs)[1][0, 0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "loreft"},
        {"kind": "noreft"},
        {"kind": "direft"},
        {"kind": "nodireft"},
        {"kind": "lobireft"},
        {"act": "gelu", "form": "mrt"},
        {"kind": "direft", "act": "silu"},
    ],
)
def test_the_start_is_the_identity_to_the_bit(settings, dtype):
    inputs = tokens([5, 7])
    model = llama().to(dtype)
    before = model(**inputs).logits
    Editor(model, ReftConfig(**settings, **SMALL))
    model.train()
    assert torch.equal(model(**inputs).logits, before)
    assert torch.equal(model.eval()(**inputs).logits, before)


def test_under_autocast_the_start_is_the_identity_and_gradients_flow():
    model, inputs = llama(), tokens([5, 7])
    with torch.autocast("cpu", torch.bfloat16):
        before = model(**inputs).logits
        editor = Editor(model, ReftConfig(**SMALL))
        after = model.train()(**inputs).logits
    assert torch.equal(after, before) and after.dtype == torch.bfloat16
    after.float().square().mean().backward()
    assert editor.stacks["blocks"].b.grad.abs().sum() > 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side):
    model = llama()
    perturb(Editor(model, ReftConfig(tied=False, **SMALL)))
    lengths = [1, 2, 3, 8]
    padded = tokens(lengths, side)
    positions = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    found = model(**padded, position_ids=positions).logits
    for row in range(len(lengths)):
        kept = padded["attention_mask"][row].bool()
        alone = model(input_ids=padded["input_ids"][row : row + 1, kept]).logits[0]
        torch.testing.assert_close(found[row, kept], alone, rtol=1e-4, atol=1e-5)


def test_without_a_mask_all_tokens_count():
    model = llama()
    perturb(Editor(model, ReftConfig(**SMALL)))
    inputs = tokens([6])
    assert torch.equal(model(inputs["input_ids"]).logits, model(**inputs).logits)


def test_answers_are_not_edited_in_training():
    model = llama()
    editor = perturb(Editor(model, ReftConfig(layers=(0,), **SMALL)))
    inputs = tokens([9])
    labels = inputs["input_ids"].clone()
    labels[:, :5] = -100
    with editor.disabled():
        before = states(model, **inputs)[1]
    after = states(model, **inputs, labels=labels)[1]
    edited = (before != after).any(-1)[0].nonzero().flatten().tolist()
    assert edited == [0, 1, 3, 4]
    with pytest.raises(ValueError, match="labels: all tokens are answers"):
        padded = tokens([4, 9])
        ids, real = padded["input_ids"], padded["attention_mask"]
        model(**padded, labels=ids.masked_fill(real == 0, -100))


def test_encoders_are_edited_at_both_ends_of_all_their_tokens():
    model, inputs = bert().eval(), tokens([4, 7])
    editor = perturb(Editor(model, ReftConfig(layers=(0,), **SMALL)))
    with editor.disabled():
        before = states(model, **inputs)[1]
    edited = (states(model, **inputs)[1] != before).any(-1)
    wanted = [[True, True, True, True, *[False] * 3], [True, True, *[False] * 3, True, True]]
    assert edited.tolist() == wanted
    picture = vit().eval()
    perturb(Editor(picture, ReftConfig(**SMALL)))
    pixels = torch.rand(1, 1, 8, 8)
    with picture.reft.disabled():
        plain = picture(pixels).last_hidden_state
    assert not torch.equal(picture(pixels).last_hidden_state, plain)


def test_the_base_is_frozen_and_gets_no_gradient():
    model = llama()
    editor = perturb(Editor(model, ReftConfig(**SMALL)))
    assert editor.trained == LAYERS * (2 * 2 * HIDDEN + 2)
    model(**tokens([6]), labels=torch.tensor([[-100] * 4 + [3, 4]])).loss.backward()
    own = {id(parameter) for parameter in editor.parameters()}
    for parameter in model.parameters():
        assert (parameter.grad is not None) == (id(parameter) in own) == parameter.requires_grad
    assert all(parameter.grad.abs().sum() > 0 for parameter in editor.parameters())


def gradients(model, inputs):
    model.zero_grad()
    model(**inputs).logits.square().mean().backward()
    return [parameter.grad.clone() for parameter in model.reft.parameters()]


def test_writing_in_place_and_checkpoints_give_the_same_gradients(monkeypatch):
    from pyext_plugins.reft import editing

    inputs = tokens([5, 8])
    model = llama().train()
    perturb(Editor(model, ReftConfig(tied=False, **SMALL)))
    inplace = gradients(model, inputs)
    model.gradient_checkpointing_enable()
    checkpointed = gradients(model, inputs)
    model.gradient_checkpointing_disable()
    monkeypatch.setattr(editing, "may_write", lambda hidden, args: False)
    copied = gradients(model, inputs)
    for a, b, c in zip(inplace, checkpointed, copied, strict=True):
        torch.testing.assert_close(a, b)
        assert torch.equal(a, c)


def test_gradients_are_those_of_the_equation():
    """Against autograd through the equation, all in float64."""
    config = ReftConfig(layers=(LAYERS - 1,), start="random", **SMALL)
    model, inputs = bert().eval().double(), tokens([6])
    stack = perturb(Editor(model, config)).double().stacks["blocks"]
    with model.reft.disabled():
        h = model(**inputs).last_hidden_state.detach()[0]
    model(**inputs).last_hidden_state.sin().sum().backward()
    X, W, b = (own.detach().clone().requires_grad_() for own in (stack.X, stack.W, stack.b))
    Q, T = torch.linalg.qr(X[0].T)
    R = (Q * T.diagonal().sign()).T
    rows = [edit_by_hand("loreft", h[k], R, W[0], b[0]) for k in (0, 1, 4, 5)]
    torch.stack(rows).sin().sum().backward()
    for own, wanted in ((stack.X, X), (stack.W, W), (stack.b, b)):
        torch.testing.assert_close(own.grad, wanted.grad)


def test_dropout_falls_on_the_added_edit_alone():
    config = ReftConfig(dropout=0.5, start="random", layers=(0,), **SMALL)
    model, inputs = llama(), tokens([5, 8])
    editor = perturb(Editor(model, config))
    with editor.disabled():
        plain = states(model, **inputs)[1]
    whole = states(model, **inputs)[1]
    model.train()
    torch.manual_seed(0)
    dropped = states(model, **inputs)[1]
    added, wanted = dropped - plain, 2 * (whole - plain)
    kept = added.abs() > 0
    torch.testing.assert_close(added[kept], wanted[kept], rtol=1e-4, atol=1e-5)
    share = kept.sum() / (wanted != 0).sum()
    assert 0.3 < share < 0.7


def test_orthonormalised_once_a_step_and_kept_in_evaluation(monkeypatch):
    from pyext.ops import lowrank

    calls = []
    real = lowrank.orthonormalize
    monkeypatch.setattr(lowrank, "orthonormalize", lambda X: calls.append(len(X)) or real(X))
    model, inputs = llama(), tokens([6])
    editor = Editor(model, ReftConfig(tied=False, **SMALL))
    calls.clear()
    model.train()
    for _ in range(2):
        model(**inputs).logits.sum().backward()
    assert calls == [2 * LAYERS] * 2
    model.eval()
    with torch.no_grad():
        first = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, first)
        optimizer = torch.optim.AdamW(editor.parameters(), lr=0.1, fused=True)
        optimizer.step()  # which leaves no trace in the parameters' version
        optimizer.zero_grad()
        calls.clear()
        second = model(**inputs).logits
        assert not torch.equal(second, first)
        assert torch.equal(model(**inputs).logits, second) and len(calls) == 1


def test_rows_stay_orthonormal_under_training():
    model, inputs = llama(), tokens([6, 8])
    editor = Editor(model, ReftConfig(**SMALL))
    optimizer = torch.optim.Adam(editor.parameters(), lr=1e-2)
    labels = inputs["input_ids"].clone()
    labels[:, :4] = -100
    losses = []
    for _ in range(30):
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    R = editor.factors()["blocks"].B
    assert losses[-1] < losses[0] - 0.1
    assert (R @ R.mT - torch.eye(2)).abs().max() < 1e-5


@pytest.mark.parametrize("settings", [{}, {"tied": False}, {"act": "gelu", "form": "mrt"}])
def test_training_follows_the_plain_ops(settings, monkeypatch):
    """Step by step; Adam turns rounding into at most a step size, and losses here are near 4."""
    from pyext_plugins.reft import stack

    from pyext.reference import lowrank

    def losses():
        torch.manual_seed(0)
        model, inputs = llama(), tokens([6, 8])
        editor = Editor(model, ReftConfig(**settings, **SMALL))
        optimizer = torch.optim.Adam(editor.parameters(), lr=1e-3)
        for _ in range(10):
            loss = model(**inputs).logits.logsumexp(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.detach()

    own = torch.stack(list(losses()))
    monkeypatch.setattr(stack, "ops", lowrank)
    plain = torch.stack(list(losses()))
    assert own[-1] < own[0]
    torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-4)


def test_copies_removal_and_parts():
    model, inputs = llama(), tokens([6])
    before = model(**inputs).logits
    editor = perturb(Editor(model, ReftConfig(**SMALL)))
    edited = model(**inputs).logits
    copied = copy.deepcopy(model)
    assert copied.reft is not editor and torch.equal(copied(**inputs).logits, edited)
    with torch.no_grad():
        copied.reft.stacks["blocks"].b.add_(1)
    assert torch.equal(model(**inputs).logits, edited)
    assert not torch.equal(copied(**inputs).logits, edited)
    with pytest.raises(ValueError, match="model: there are editors in it already"):
        Editor(model, ReftConfig())
    with pytest.raises(RuntimeError, match="model.layers.0: which tokens to edit is known within"):
        model.model(**inputs)
    assert editor.remove() is model and torch.equal(model(**inputs).logits, before)
    assert not any(name.startswith("reft") for name, _ in model.named_modules())


def test_hidden_states_that_were_collected_before_are_edited_ones():
    model, inputs = llama(), tokens([6])
    before = states(model, **inputs)  # installs the hooks of transformers
    perturb(Editor(model, ReftConfig(layers=(0,), **SMALL)))
    with torch.enable_grad():
        after = model(**inputs, output_hidden_states=True).hidden_states
    assert not torch.equal(after[1], before[1])


def bad_configs():
    yield {"kind": "loreftt"}, "kind: expected one of loreft, .*got 'loreftt'"
    yield {"act": "sin"}, "act: expected one of identity"
    yield {"form": "add"}, "form: expected one of reft, mrt"
    yield {"start": "zero"}, "start: expected one of identity, random"
    yield {"dropout": 1.0}, "dropout: expected 0 to below 1, got 1.0"
    yield {"kind": "consreft"}, "start: consreft replaces .*expected 'random'"
    yield {"act": "gelu"}, "start: .*is not 0 with act 'gelu'"
    yield {"act": "relu", "form": "mrt"}, "start: relu has no slope at 0"
    yield {"kind": "lobireft", "act": "gelu"}, "act: lobireft has nothing to activate"
    yield {"rank": 0}, "rank: expected 1 to 64, got 0"
    yield {"prefix": -1}, "prefix: expected a number of tokens from 0, got -1"
    yield {"rank": 17}, "rank: expected at most the width 16, got 17"
    yield {"layers": (3,)}, "layers: expected blocks from 0 to 2, got 3"
    yield {"layers": (0, 0)}, "layers: a block is named twice"
    yield {"layers": ()}, "nothing is edited"
    yield {"prefix": 0, "suffix": 0}, "nothing is edited"
    yield {"blocks": "model.norm"}, "layers: expected a ModuleList"


@pytest.mark.parametrize(("settings", "message"), bad_configs())
def test_bad_settings_are_named_and_leave_the_model_alone(settings, message):
    model = llama()
    with pytest.raises(ValueError, match=message):
        Editor(model, ReftConfig(**settings))
    assert not hasattr(model, "reft") and next(model.parameters()).requires_grad


def test_what_cannot_be_edited_is_refused():
    with pytest.raises(NotImplementedError, match="T5.* is an encoder with a decoder"):
        sizes = {"d_model": HIDDEN, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        Editor(
            transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)), ReftConfig()
        )
    model, inputs = llama(), tokens([4, 6])
    editor = Editor(model, ReftConfig(**SMALL))
    with pytest.raises(ValueError, match=r"attention_mask: expected \[B, S\].*got \[2, 6, 6\]"):
        editor.positions({"attention_mask": torch.ones(2, 6, 6)}, torch.ones(2, 6, HIDDEN))
    with pytest.raises(ValueError, match=r"labels: expected \[B, S\].*got \[2, 5\]"):
        model(**inputs, labels=torch.full((2, 5), -100))
    model.to(torch.bfloat16)
    with pytest.raises(TypeError, match="an orthonormal factor must be kept in float32"):
        model(**inputs)
