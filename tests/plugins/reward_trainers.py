"""A tiny language model and TRL trainers of it, with three rewards; nothing is fetched."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")

WORDS = [f"w{number}" for number in range(20)]
SPECIAL = ["<pad>", "<eos>", "<unk>"]


def low(completion_ids, **_):
    return [sum(token < 13 for token in ids) / len(ids) for ids in completion_ids]


def rare(completion_ids, **_):
    return [0.2 * sum(token == 20 for token in ids) for ids in completion_ids]


def sometimes(completion_ids, **_):
    return [ids[0] / 23 if ids[0] % 2 else None for ids in completion_ids]


REWARDS = [low, rare, sometimes]
NAMES = ["low", "rare", "sometimes"]


def tokenizer():
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="<unk>")
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def language_model(folder):
    """Loaded from a folder, from where RLOO loads its reference again."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return transformers.LlamaForCausalLM.from_pretrained(folder)


def make(folder, kind="GRPO", **more):
    prompts = datasets.Dataset.from_dict({"prompt": [f"w{k} w{k + 1}" for k in range(8)]})
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 5,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 0,
    }
    return getattr(trl, f"{kind}Trainer")(
        model=language_model(folder / "model"),
        reward_funcs=list(REWARDS),
        args=getattr(trl, f"{kind}Config")(**settings | more),
        train_dataset=prompts,
        eval_dataset=prompts.select(range(2)),
        processing_class=tokenizer(),
    )
