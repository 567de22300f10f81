"""Tiny bases started at random, LoRAs on them, and samples: what the tests of merging merge."""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

VOCABULARY = 60
ENDS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}


def bert():
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    return transformers.BertModel(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=2, **ENDS
    )
    return transformers.GPT2LMHeadModel(config)


def t5():
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        **ENDS,
    )
    return transformers.T5ForConditionalGeneration(config)


BASES = {"bert": bert, "gpt2": gpt2, "t5": t5}
TARGETS = {"bert": ["query", "value"], "gpt2": ["c_attn", "c_fc"], "t5": ["q", "v"]}


def base(kind):
    torch.manual_seed(0)
    return BASES[kind]().eval()


def lora(kind, seed, folder, targets=None, strength=0.3, named=None, **more):
    """Write a LoRA with random factors on a base; returns the folder."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": targets or TARGETS[kind], **more}
    if kind == "gpt2":
        settings["fan_in_fan_out"] = True
    model = peft.get_peft_model(base(kind), peft.LoraConfig(**settings))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=strength)
    model.save_pretrained(folder)
    change_config(folder, base_model_name_or_path=named)
    return folder


def change_config(folder, **entries):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


WORDS = ["red", "green", "blue", "old", "new", "dog", "cat", "runs", "sleeps", "sings", "and"]


def save_base(kind, folder):
    """Write a base and a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    base(kind).save_pretrained(folder)
    numbers = {word: number for number, word in enumerate(["[PAD]", "[END]", "[UNK]", *WORDS])}
    own = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="[PAD]", eos_token="[END]", unk_token="[UNK]"
    )
    tokenizer.save_pretrained(folder)
    return folder


def save_samples(path, seed, count=12, target=False):
    """Write lines of random words; with ``target``, each with a second text."""
    generator = torch.Generator().manual_seed(seed)

    def text():
        length = int(torch.randint(3, 9, (1,), generator=generator))
        numbers = torch.randint(0, len(WORDS), (length,), generator=generator).tolist()
        return " ".join(WORDS[number] for number in numbers)

    rows = [{"text": text(), **({"target": text()} if target else {})} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_case(kind, folder, **more):
    """A base, two LoRAs of other ranks and modules, and their samples: arguments of `merge`."""
    save_base(kind, folder / "base")
    lora(kind, 1, folder / "a", named="tiny")
    lora(kind, 2, folder / "b", named="tiny", r=2, use_rslora=True, targets=TARGETS[kind][:1])
    for seed, name in enumerate("ab"):
        save_samples(folder / f"{name}.jsonl", seed, target=kind == "t5", **more)
    arguments = ["iteris", "merge", "--base", str(folder / "base"), "-o", str(folder / "out")]
    for name in "ab":
        arguments += ["--adapter", str(folder / name), "--samples", str(folder / f"{name}.jsonl")]
    return arguments
