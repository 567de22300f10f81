"""MRT in a LLaVA model: where it edits, generating, files of both kinds, the merged projector."""

import warnings

import pytest
import torch
from pyext_plugins.mrt.author_files import load_author_files
from pyext_plugins.mrt.config import MrtConfig
from pyext_plugins.mrt.model import MrtEditor, used_blocks
from pyext_plugins.mrt.projector import merged_projector
from pyext_plugins.reft.config import ReftConfig
from pyext_plugins.reft.model import Editor

from pyext.errors import UserError
from tests.plugins.reft_models import IMAGE, PATCHES, llama, llava, perturb
from tests.plugins.side_models import HIDDEN, LAYERS, transformers

WIDE = 2 * HIDDEN  # of the language model
SMALL = {"vision_rank": 3, "text_rank": 2, "prefix": 2, "suffix": 1}
GREEDY = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}
I = [IMAGE] * PATCHES  # noqa: E741


def batch(texts, images, side="right"):
    """Texts of ids, filled up; so many pictures in all."""
    longest = max(map(len, texts))
    rows, masks = [], []
    for text in texts:
        gap = longest - len(text)
        left, right = (0, gap) if side == "right" else (gap, 0)
        rows.append([0] * left + text + [0] * right)
        masks.append([0] * left + [1] * len(text) + [0] * right)
    pixels = torch.rand(images, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
    return {**inputs, "pixel_values": pixels} if images else inputs


ONE = batch([[1, *I, 5, 6, 7, 8], [1, *I, 9]], 2)


def block_states(model, inputs, layer=0, **more):
    """What a block of the language model gives."""
    return model(**inputs, **more, output_hidden_states=True).hidden_states[layer + 1].detach()


def edited(model, inputs, **more):
    """Where the first block of the language model is edited, by sample."""
    with model.reft.disabled():
        plain = block_states(model, inputs, **more)
    moved = (block_states(model, inputs, **more) != plain).any(-1)
    return [row.nonzero().flatten().tolist() for row in moved]


def text_only(model, **more):
    return perturb(MrtEditor(model, MrtConfig(**SMALL, vision_layers=(), projector=False, **more)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_questions_are_found_wherever_they_are(side):
    model = llava()
    text_only(model, text_layers=(0,))
    texts = [
        [1, *I, 5, 6, 7, 8, 9],  # 5 tokens: 2 and 1
        [1, *I, 5, *I, 6, 7],  # two pictures; 2 tokens: 1 and 1
        [1, 2, 3, 4],  # no picture: the whole prompt
        [1, *I, 5],  # 1 token: the suffix alone
        [1, *I],  # cut off: none
    ]
    wanted = [[5, 6, 9], [10, 11], [0, 1, 3], [5], []]
    inputs = batch(texts, 5, side)
    longest = inputs["input_ids"].shape[1]
    gaps = [longest - len(text) if side == "left" else 0 for text in texts]
    moved = [[place + gap for place in row] for row, gap in zip(wanted, gaps, strict=True)]
    assert edited(model, inputs) == moved


def test_answers_are_not_edited_in_training():
    model = llava()
    text_only(model, text_layers=(0,))
    labels = torch.full_like(ONE["input_ids"], -100)
    labels[0, 7:] = 8
    assert edited(model, ONE, labels=labels) == [[5, 6], [5]]
    assert edited(model, ONE) == [[5, 6, 8], [5]]


def test_vision_blocks_and_projector_are_edited_everywhere_and_only_where_used():
    model = llava()
    editor = MrtEditor(model, MrtConfig(**SMALL))
    names = [site.path for site in editor.sites if site.stack == "vision"]
    assert len(names) == LAYERS - 1 and names[-1].endswith(f"layers.{LAYERS - 2}")
    assert editor.trained == (
        (LAYERS - 1) * (2 * 3 * HIDDEN + 3) + (2 * 3 * WIDE + 3) + 2 * LAYERS * (2 * 2 * WIDE + 2)
    )
    with editor.disabled():
        plain = model.get_image_features(ONE["pixel_values"]).pooler_output
    perturb(editor)
    found = model.get_image_features(ONE["pixel_values"]).pooler_output
    assert all((a != b).any(-1).all() for a, b in zip(plain, found, strict=True))


def test_the_paper_size():
    """Of LLaVA-7B: 64 editors of 4096 x 4, 22 of 1024 x 6 and one of 4096 x 6."""
    from pyext_plugins.reft.stack import Stack

    shapes = [(64, 4, 4096), (22, 6, 1024), (1, 6, 4096)]
    device = torch.device("cpu")
    sizes = [Stack(*shape, MrtConfig(), device) for shape in shapes]
    assert sum(own.numel() for stack in sizes for own in stack.parameters()) == 2_417_034


def test_blocks_that_are_used():
    assert used_blocks(-2, 24) == 23 and used_blocks(-1, 24) == 24
    assert used_blocks([-5, 3], 24) == 20 and used_blocks(0, 24) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_is_the_identity_to_the_bit(dtype):
    model = llava().to(dtype)
    inputs = {**ONE, "pixel_values": ONE["pixel_values"].to(dtype)}
    before = model(**inputs).logits
    MrtEditor(model, MrtConfig())
    assert torch.equal(model.train()(**inputs).logits, before)
    assert torch.equal(model.eval()(**inputs).logits, before)


def test_editors_train_and_the_base_does_not():
    model = llava()
    editor = MrtEditor(model, MrtConfig(**SMALL))
    labels = torch.full_like(ONE["input_ids"], -100)
    labels[0, 7:], labels[1, 5] = 8, 9
    optimizer = torch.optim.Adam(editor.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(**ONE, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    own = {id(parameter) for parameter in editor.parameters()}
    for parameter in model.parameters():
        assert (parameter.grad is not None) == (id(parameter) in own) == parameter.requires_grad
    for factors in editor.factors().values():
        R = factors.B
        assert (R @ R.mT - torch.eye(R.shape[1])).abs().max() < 1e-5


def test_trainer_trains_the_editors_alone(tmp_path):
    pytest.importorskip("accelerate")
    model = llava()
    MrtEditor(model, MrtConfig(**SMALL))
    before = {name: own.clone() for name, own in model.state_dict().items()}
    samples = [{name: own[row] for name, own in ONE.items()} for row in range(2)] * 4
    for sample in samples:
        sample["labels"] = torch.full_like(sample["input_ids"], -100)
        last = int(sample["attention_mask"].nonzero().max())
        sample["labels"][last] = sample["input_ids"][last]
    settings = transformers.TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        num_train_epochs=5,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
    )
    trainer = transformers.Trainer(model, settings, train_dataset=samples)
    start = trainer.evaluate(samples)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(samples)["eval_loss"] < start - 0.1
    after = model.state_dict()
    moved = {name for name, own in before.items() if not torch.equal(own, after[name])}
    assert moved == {name for name in before if name.startswith("reft.")}


def test_generating_with_a_cache_edits_the_prefill_alone():
    model = llava()
    perturb(MrtEditor(model, MrtConfig(**SMALL)))
    inputs = batch([[1, *I, 5, 6, 7], [1, *I, 9]], 2, "left")
    start = inputs["input_ids"].shape[1]
    with torch.no_grad():
        found = model.generate(**inputs, **GREEDY, suppress_tokens=[IMAGE])
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        for _ in range(5):
            labels = torch.full_like(ids, -100)
            labels[:, start:] = 1
            places = (mask.cumsum(1) - 1).clamp(min=0)
            call = {"attention_mask": mask, "position_ids": places, "labels": labels}
            logits = model(ids, inputs["pixel_values"], **call, use_cache=False).logits
            logits[..., IMAGE] = -torch.inf
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    assert torch.equal(found, ids)


def test_a_lora_may_be_underneath():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = peft.get_peft_model(llava(), config).eval()
    before = model(**ONE).logits
    editor = MrtEditor(model, MrtConfig(**SMALL))
    assert torch.equal(model(**ONE).logits, before)
    perturb(editor)
    after = model(**ONE).logits
    assert not torch.equal(after, before)
    assert torch.equal(model.get_base_model()(**ONE).logits, after)


def test_saved_editors_give_the_same_bits(tmp_path):
    model = llava()
    editor = perturb(MrtEditor(model, MrtConfig(**SMALL, text_layers=(0, 2))))
    editor.save_pretrained(tmp_path)
    found = MrtEditor.from_pretrained(llava(), tmp_path)
    assert found.config == editor.config and found.trained == 0
    assert torch.equal(found.model(**ONE).logits, model(**ONE).logits)
    with pytest.raises(UserError, match="the editors do not fit this model: model: expected a LL"):
        MrtEditor.from_pretrained(llama(), tmp_path)
    with pytest.raises(UserError, match="expected editors of type REFT, got 'MRT'"):
        Editor.from_pretrained(llama(), tmp_path)


@pytest.mark.parametrize("bias", [True, False])
def test_the_projector_takes_its_editor_in(bias):
    model = llava()
    if not bias:
        model.model.multi_modal_projector.linear_2.bias = None
    editor = perturb(MrtEditor(model, MrtConfig(**SMALL, vision_layers=(), text_layers=())))
    wanted = model(**ONE).logits
    merged = merged_projector(editor)
    editor.remove()
    assert not torch.allclose(model(**ONE).logits, wanted, atol=1e-3)
    model.model.multi_modal_projector.linear_2 = merged
    torch.testing.assert_close(model(**ONE).logits, wanted, rtol=1e-5, atol=1e-6)


def test_other_editors_cannot_be_merged():
    editor = MrtEditor(llava(), MrtConfig(**SMALL))
    for stack in ("text", "vision"):
        with pytest.raises(ValueError, match=f"stack: .* '{stack}' .* cannot be merged"):
            merged_projector(editor, stack)
    with pytest.raises(ValueError, match="act: an editor with gelu cannot be merged"):
        merged_projector(MrtEditor(llava(), MrtConfig(act="gelu", **SMALL)))
    with pytest.raises(ValueError, match="stack: there is no editor after the projector"):
        merged_projector(MrtEditor(llava(), MrtConfig(projector=False, **SMALL)))


def author_modules(editor, blocks=LAYERS):
    """What the authors' training would have left of these editors, unused vision blocks too."""
    torch.manual_seed(1)
    parts = {}

    def add(name, stack, e):
        mixing = torch.randn(3, 3)[: stack.X.shape[1], : stack.X.shape[1]]
        positive = torch.linalg.qr(mixing).R.abs().tril().T + torch.eye(len(mixing))
        R = editor.factors()[stack_name].B[e].detach()
        parts[name] = {
            "rotate_layer.weight": R.T @ positive.triu(),
            "learned_source.weight": stack.W[e].detach().bfloat16(),
            "learned_source.bias": stack.b[e].detach().bfloat16(),
        }

    for stack_name, stack in editor.named_stacks().items():
        for e in range(len(stack.X)):
            if stack_name == "text":
                add(f"model.{('prefix', 'suffix')[e % 2]}_lm_rt.{e // 2}", stack, e)
            elif stack_name == "vision":
                add(f"model.vision_tower.vision_tower.vision_model.encoder.vision_rt.{e}", stack, e)
            else:
                add("model.mm_rt", stack, e)
    last = "model.vision_tower.vision_tower.vision_model.encoder.vision_rt."
    parts[f"{last}{blocks - 1}"] = parts[f"{last}0"]
    return parts


def with_parents(parts):
    """The same once more, by the modules around and inside."""
    listed = dict(parts)
    for name, state in parts.items():
        parent, _, number = name.rpartition(".")
        listed.setdefault(parent, {}).update({f"{number}.{k}": v for k, v in state.items()})
        for key, tensor in state.items():
            inner, _, kind = key.partition(".")
            listed.setdefault(f"{name}.{inner}", {})[kind] = tensor
    return listed


def author_model():
    model = llava()
    editor = perturb(MrtEditor(model, MrtConfig(**{**SMALL, "suffix": 2})))
    with torch.no_grad():
        for stack in editor.named_stacks().values():  # as the file keeps them
            stack.W.copy_(stack.W.bfloat16())
            stack.b.copy_(stack.b.bfloat16())
    return model


def test_the_file_of_the_authors_is_read(tmp_path):
    model = author_model()
    torch.save(with_parents(author_modules(model.reft)), tmp_path / "rt_modules.bin")
    found = load_author_files(llava(), tmp_path, length=2)
    assert [site.path for site in found.sites] == [site.path for site in model.reft.sites]
    torch.testing.assert_close(found.model(**ONE).logits, model(**ONE).logits, rtol=1e-4, atol=1e-5)


def test_a_bad_file_of_the_authors_is_named(tmp_path):
    parts = author_modules(author_model().reft)
    path, fresh = tmp_path / "rt_modules.bin", llava()

    def refused(message, content, model=fresh):
        torch.save(content, path)
        with pytest.raises(UserError, match=message):
            load_author_files(model, path, length=2)
        assert not hasattr(model, "reft")

    with pytest.raises(UserError, match="cannot be read as tensors"):
        load_author_files(fresh, tmp_path / "no.bin")
    name = "model.prefix_lm_rt.1"
    less = {key: own for key, own in parts[name].items() if key != "learned_source.bias"}
    refused("prefix 1: no learned_source.bias", {**parts, name: less})
    refused("a prefix and a suffix editor of each", {k: v for k, v in parts.items() if k != name})
    rounded = {**parts[name], "rotate_layer.weight": parts[name]["rotate_layer.weight"].bfloat16()}
    refused("prefix 1: the orthonormal factor must be kept in fp32", {**parts, name: rounded})
    other = {"weight": parts[name]["rotate_layer.weight"] + 1}
    refused("is there twice, with different", {**parts, f"{name}.rotate_layer": other})
    refused("expected mm_rt, vision_rt", {"model.norm": {"weight": torch.ones(3)}})
    refused("expected state dicts by module, got list", [torch.ones(3)])
    refused("cannot be read as tensors", {"model": {"code": MrtEditor}})
    flat = {**parts[name], "rotate_layer.weight": torch.ones(WIDE, 2)}
    refused("text: X: matrix 2 is not finite, or its rows are dependent", {**parts, name: flat})
    refused("model: expected a LLaVA model, LlamaForCausalLM", parts, llama())


def bad_configs():
    yield {"vision_rank": 0}, "vision_rank: expected 1 to 64, got 0"
    yield {"text_rank": 65}, "text_rank: expected 1 to 64, got 65"
    yield {"suffix": -1}, "suffix: expected a number of tokens from 0, got -1"
    yield {"vision_layers": (2,)}, "vision_layers: expected blocks from 0 to 1, got 2"
    yield {"text_layers": (3,)}, "text_layers: expected blocks from 0 to 2, got 3"
    yield {"vision_rank": 20}, "rank: expected at most the width 16, got 20"
    yield (
        {"vision_layers": (), "projector": False, "text_layers": ()},
        "text_layers: nothing is edited",
    )
    yield {"act": "gelu", "form": "reft"}, "start: .*is not 0 with act 'gelu'"


@pytest.mark.parametrize(("settings", "message"), bad_configs())
def test_bad_settings_are_named_and_leave_the_model_alone(settings, message):
    model = llava()
    with pytest.raises(ValueError, match=message):
        MrtEditor(model, MrtConfig(**settings))
    assert not hasattr(model, "reft") and next(model.parameters()).requires_grad


def test_what_has_no_pictures_is_refused():
    with pytest.raises(ValueError, match="model: expected a LLaVA model, LlamaForCausalLM has no"):
        MrtEditor(llama(), MrtConfig())
    model = llava()
    text_only(model)
    embeds = model.get_input_embeddings()(torch.tensor([[1, 2, 3]]))
    with pytest.raises(ValueError, match="input_ids: expected them, to tell images from questions"):
        model(inputs_embeds=embeds)


def test_text_editors_of_reft_stand_in_a_llava_too():
    model = llava()
    config = ReftConfig(rank=2, prefix=1, suffix=1, blocks="model.language_model.layers")
    editor = Editor(model, config)
    assert editor.stacks["blocks"].X.shape[-1] == WIDE
    assert isinstance(model, transformers.LlavaForConditionalGeneration)
    assert torch.isfinite(model(**ONE).logits).all()
