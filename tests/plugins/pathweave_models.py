"""Tiny Q-Formers, started at random; nothing is fetched."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from pyext_plugins.pathweave.model import PathWeave  # noqa: E402
from pyext_plugins.pathweave.qformers import qformer_sites  # noqa: E402

HIDDEN, ENCODER, QUERIES = 16, 12, 3
SMALL = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "encoder_hidden_size": ENCODER,
    "cross_attention_frequency": 2,
}
KINDS = ("Blip2", "InstructBlip", "InstructBlipVideo")


def qformer(kind="Blip2", seed=0):
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}QFormerConfig")(vocab_size=20, **SMALL)
    return getattr(transformers, f"{kind}QFormerModel")(config).eval()


def inputs(batch=2, tokens=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "query_embeds": torch.randn(batch, QUERIES, HIDDEN, generator=generator),
        "encoder_hidden_states": torch.randn(batch, tokens, ENCODER, generator=generator),
    }


def run(model, given):
    more = {} if "Blip2" in type(model.model).__name__ else {"input_ids": None}
    return model(**given, **more).last_hidden_state


def woven(kind="Blip2", **more):
    model = qformer(kind)
    return PathWeave(model, qformer_sites(model), **more).eval()


def two_layers(dtype=torch.float32, seed=0):
    """Linear layers 8 to 6 to 5."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5)).to(dtype)


def stir(model, name, seed=0):
    """Give all parameters of a modality values as after some training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.stage_parameters(name).values():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.3 * noise)


def loss_of(output):
    """A sum would be the same whatever comes out of a LayerNorm, and one of squares too."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype)
    return (output * weights.view_as(output)).square().sum()


def train(model, forward, steps=3):
    """AdamW with weight decay, which would also move what has no gradient but is trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(forward()).backward()
        optimizer.step()
    model.eval()
