"""Editors under what transformers and peft do with a model: generate, Trainer, LoRA."""

import warnings

import pytest
import torch
from pyext_plugins.reft.config import ReftConfig
from pyext_plugins.reft.model import Editor

from tests.plugins.reft_models import llama, perturb, tokens
from tests.plugins.side_models import bert_classifier, transformers

SMALL = {"rank": 2, "prefix": 2, "suffix": 2}
GREEDY = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}


def greedy_by_hand(model, inputs, steps):
    """Without a cache: the prompt is read anew for each token, edited at the same places.

    Tokens that were generated are told from the prompt by their labels.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    start = ids.shape[1]
    for _ in range(steps):
        labels = torch.full_like(ids, -100)
        labels[:, start:] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        call = {"attention_mask": mask, "labels": labels, "use_cache": False}
        logits = model(ids, position_ids=positions, **call).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return ids


@pytest.mark.parametrize("untied", [False, True])
def test_generating_with_a_cache_edits_the_prompt_alone(untied):
    model, inputs = llama(), tokens([3, 6], "left")
    editor = perturb(Editor(model, ReftConfig(tied=not untied, **SMALL)))
    with torch.no_grad():
        found = model.generate(**inputs, **GREEDY)
        assert torch.equal(found, greedy_by_hand(model, inputs, 6))
        with editor.disabled():
            assert not torch.equal(model.generate(**inputs, **GREEDY), found)
        static = model.generate(**inputs, **GREEDY, cache_implementation="static")
        beams = model.generate(**inputs, **GREEDY, num_beams=2)
    assert torch.equal(static, found)
    assert beams.shape == found.shape


def test_training_with_a_filled_cache_is_refused():
    model, inputs = llama(), tokens([5])
    Editor(model, ReftConfig(**SMALL))
    cache = transformers.DynamicCache()
    model.train()
    model(**inputs, cache=cache)
    more = torch.ones(1, 6, dtype=torch.long)
    with pytest.raises(ValueError, match="cache: expected an empty cache in training"):
        model(torch.tensor([[3]]), attention_mask=more, cache=cache)


def lora(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(model, config).eval()


@pytest.mark.parametrize("freeze", [True, False])
def test_editors_stand_on_a_lora(freeze):
    torch.manual_seed(0)
    model, inputs = lora(llama()), tokens([4, 6], "left")
    plain = model(**inputs).logits
    editor = Editor(model, ReftConfig(**SMALL), freeze=freeze)
    assert torch.equal(model(**inputs).logits, plain)
    perturb(editor)
    edited = model(**inputs).logits
    assert not torch.equal(edited, plain)
    with torch.no_grad():
        assert torch.equal(model.get_base_model()(**inputs).logits, edited)
        assert torch.equal(model.generate(**inputs, **GREEDY), greedy_by_hand(model, inputs, 6))
    edited.sum().backward()
    trains = {name for name, own in model.named_parameters() if own.grad is not None}
    assert {name.split(".")[0] for name in trains} == (
        {"reft"} if freeze else {"reft", "base_model"}
    )
    assert all("lora_" in name or name.startswith("reft.") for name in trains)


class Texts(torch.utils.data.Dataset):
    """What a text begins and ends with, its class."""

    def __len__(self):
        return 32

    def __getitem__(self, number):
        inputs = tokens([4 + number % 5], seed=number)
        label = number % 2
        inputs["input_ids"][0, [0, -1]] = 5 + 20 * label
        return {**{name: own[0] for name, own in inputs.items()}, "labels": label}


def collate(samples):
    longest = max(len(sample["input_ids"]) for sample in samples)

    def filled(own):
        return torch.nn.functional.pad(own, (0, longest - len(own)))

    batch = {
        name: torch.stack([filled(s[name]) for s in samples])
        for name in ("input_ids", "attention_mask")
    }
    return {**batch, "labels": torch.tensor([sample["labels"] for sample in samples])}


def test_trainer_trains_the_editors_alone(tmp_path):
    pytest.importorskip("accelerate")
    model = bert_classifier()
    editor = Editor(model, ReftConfig(**SMALL))
    before = {name: own.clone() for name, own in model.state_dict().items()}
    settings = transformers.TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=8,
        num_train_epochs=15,
        learning_rate=2e-2,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
    )
    trainer = transformers.Trainer(model, settings, data_collator=collate, train_dataset=Texts())
    start = trainer.evaluate(Texts())["eval_loss"]
    trainer.train()
    assert trainer.evaluate(Texts())["eval_loss"] < start - 0.02
    after = model.state_dict()
    moved = {name for name, own in before.items() if not torch.equal(own, after[name])}
    assert moved == {f"reft.stacks.blocks.{name}" for name in ("X", "W", "b")}
    editor.save_pretrained(tmp_path / "out")
    again = Editor.from_pretrained(bert_classifier(), tmp_path / "out")
    batch = collate([Texts()[0], Texts()[1]])
    del batch["labels"]
    assert torch.equal(again.model.eval()(**batch).logits, model.eval()(**batch).logits)
