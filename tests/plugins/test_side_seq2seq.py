"""SHERL beside an encoder-decoder."""

import pytest
import torch
from pyext_plugins.side.config import SherlConfig
from pyext_plugins.side.files import load_adapter
from pyext_plugins.side.seq2seq import SherlSeq2Seq

from tests.plugins.side_models import HIDDEN, VOCABULARY, text, transformers

GATED = SherlConfig(down="gated")
BLOCKS = 3


def t5():
    torch.manual_seed(0)
    sizes = {"d_model": HIDDEN, "d_kv": 8, "d_ff": 32, "num_layers": BLOCKS, "num_heads": 2}
    more = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    config = transformers.T5Config(vocab_size=VOCABULARY, **sizes, **more)
    return transformers.T5ForConditionalGeneration(config)


def wrapped(config=GATED):
    model = SherlSeq2Seq(t5(), config)
    for side in (model.side.encoder, model.side.decoder):
        torch.nn.init.ones_(side.gate.bias)
    return model


def labels():
    return torch.randint(2, 48, (3, 4), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("config", [GATED, SherlConfig()])
def test_only_the_side_networks_are_trained(config):
    model = wrapped(config).train()
    output = model(**text(), labels=labels())
    output.loss.backward()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    for name, parameter in model.side.named_parameters():
        assert parameter.grad.any(), name
    optimizer = torch.optim.Adam(model.side.parameters(), lr=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        last = model(**text(), labels=labels()).loss
        last.backward()
        optimizer.step()
    assert last < output.loss


def test_blocks_before_the_last_are_what_they_were():
    model, seen = wrapped().eval(), {True: [], False: []}
    for adapted in (True, False):
        handles = [
            layer.register_forward_hook(
                lambda m, a, out, adapted=adapted: seen[adapted].append(out[0].detach())
            )
            for layer in model.decoder_layers
        ]
        (model if adapted else model.backbone)(**text(), labels=labels())
        for handle in handles:
            handle.remove()
    same = [torch.equal(a, b) for a, b in zip(seen[True], seen[False], strict=True)]
    assert same == [True] * (BLOCKS - 1) + [False]


@pytest.mark.parametrize("beams", [1, 2])
def test_it_generates_the_same_with_and_without_a_cache(beams):
    model = wrapped().eval()
    found = [
        model.generate(**text(), max_new_tokens=6, num_beams=beams, do_sample=False, use_cache=use)
        for use in (True, False)
    ]
    assert torch.equal(*found)
    # Word by word what the whole forward says of the words before.
    if beams == 1:
        whole = model(**text(), decoder_input_ids=found[0][:, :-1]).logits.argmax(-1)
        ended = (found[0][:, 1:] == 1).cumsum(-1) - (found[0][:, 1:] == 1).int() > 0
        assert torch.equal(whole[~ended], found[0][:, 1:][~ended])


def test_the_encoder_must_run_here():
    model = wrapped()
    outputs = model.backbone.encoder(**text())
    with pytest.raises(ValueError, match="encoder_outputs: the encoder must run here"):
        model(encoder_outputs=outputs, labels=labels())
    with pytest.raises(ValueError, match="taps: expected None for an encoder-decoder"):
        SherlSeq2Seq(t5(), SherlConfig(taps=(0, 1)))


def test_it_comes_back_from_its_folder(tmp_path):
    model = wrapped().eval()
    model.save_pretrained(tmp_path)
    again = load_adapter(SherlSeq2Seq(t5(), GATED), tmp_path)
    assert torch.equal(*(m(**text(), labels=labels()).logits for m in (model, again)))
