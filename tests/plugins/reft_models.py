"""Tiny models for editors, started at random; nothing is fetched."""

import torch

from tests.plugins.side_models import HIDDEN, SMALL, VOCABULARY, transformers

PATCHES, IMAGE, PAD = 4, 49, 0


def llama(seed=0):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, num_key_value_heads=1, pad_token_id=PAD, eos_token_id=None, **SMALL
    )
    return transformers.LlamaForCausalLM(config).eval()


def llava(seed=0, layer=-2):
    torch.manual_seed(seed)
    vision = transformers.CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=8, **SMALL)
    text = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        num_key_value_heads=1,
        pad_token_id=PAD,
        eos_token_id=None,
        **{**SMALL, "hidden_size": 2 * HIDDEN},
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=PATCHES,
        vision_feature_layer=layer,
    )
    return transformers.LlavaForConditionalGeneration(config).eval()


def perturb(editor, seed=0):
    """Away from the start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in editor.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return editor


def tokens(lengths, side="right", seed=0):
    """Random texts of these lengths, filled up to the longest: ids and mask [B, S]."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.full((len(lengths), longest), PAD)
    mask = torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        own = slice(0, n) if side == "right" else slice(longest - n, longest)
        ids[row, own] = torch.randint(1, IMAGE, (n,), generator=generator)
        mask[row, own] = 1
    return {"input_ids": ids, "attention_mask": mask}
