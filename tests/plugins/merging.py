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
