"""Tiny backbones, started at random; nothing is fetched."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

transformers = pytest.importorskip("transformers")

HIDDEN, LAYERS, VOCABULARY = 16, 3, 50
SMALL = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def bert(seed=0, **more):
    torch.manual_seed(seed)
    config = transformers.BertConfig(vocab_size=VOCABULARY, **SMALL, **more)
    return transformers.BertModel(config)


def bert_classifier(seed=0):
    torch.manual_seed(seed)
    config = transformers.BertConfig(vocab_size=VOCABULARY, num_labels=2, **SMALL)
    return transformers.BertForSequenceClassification(config)


def vit():
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=8, patch_size=2, num_channels=1, **SMALL)
    return transformers.ViTModel(config)


def clip_text(projected=False):
    torch.manual_seed(0)
    ends = {"bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 0}
    config = transformers.CLIPTextConfig(vocab_size=VOCABULARY, projection_dim=8, **SMALL, **ends)
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config)


def clip_image(projected=False):
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(image_size=8, patch_size=2, projection_dim=8, **SMALL)
    kind = transformers.CLIPVisionModelWithProjection if projected else transformers.CLIPVisionModel
    return kind(config)


def t5_encoder():
    torch.manual_seed(0)
    sizes = {"d_model": HIDDEN, "d_kv": 8, "d_ff": 32, "num_layers": LAYERS, "num_heads": 2}
    return transformers.T5EncoderModel(transformers.T5Config(vocab_size=VOCABULARY, **sizes))


def text(batch=3, tokens=7):
    """Sentences with padding in one of them; the fifth token ends a text."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 48, (batch, tokens), generator=generator)
    ids[:, 4] = 49
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def images(channels=1):
    return {
        "pixel_values": torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    }


WORDS = ["good", "bad", "film", "the", "was", "a", "plot", "very", "old", "new", "long", "short"]


def encoder_folder(folder):
    """A BERT of a few words on disk, with its tokenizer."""
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=32, **SMALL)
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def t5_folder(folder):
    """A T5 of a few words on disk, with a tokenizer that fills up with nothing of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir()
    words = {word: number for number, word in enumerate(["<eos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", model_max_length=64
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"d_model": HIDDEN, "d_kv": 8, "d_ff": 32, "num_layers": LAYERS, "num_heads": 2}
    config = transformers.T5Config(vocab_size=len(words), **sizes)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def reviews(path, rows=60):
    """Texts of different lengths that are good or bad."""
    generator = torch.Generator().manual_seed(0)
    lines = ["text,label"]
    for row in range(rows):
        label = ("bad", "good")[row % 2]
        count = int(torch.randint(2, 9, (), generator=generator))
        fill = [WORDS[i] for i in torch.randint(2, len(WORDS), (count,), generator=generator)]
        lines.append(f'"{" ".join([label, *fill, label])}, film",{label}')
    path.write_text("\n".join(lines) + "\n")
    return path
