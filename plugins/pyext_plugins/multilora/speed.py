"""peft's loop and the ops on the same weights and batches: time, memory, and how far apart."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, product
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from pyext.runtime import use_threads
from pyext_plugins.multilora.mixed import enable

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PEFT, OPS, BASE = "peft's loop", "multilora", "base model alone"
ADAPTERS, FORWARD, TRAINING = "adapters alone", "whole forward", "training step"
TOKENS = 1000  # of the vocabulary


@dataclass(frozen=True)
class Size:
    """Of a model of Llama's form with adapters at all its linear layers, and of its batches.

    Args:
        ranks: of the adapters, in turn.
        lengths: tokens of a sequence, one batch of each.
        trained: tokens of a sequence that is trained on.
    """

    width: int = 1024
    inner: int = 2816
    heads: int = 16
    layers: int = 4
    adapters: int = 16
    ranks: tuple[int, ...] = (4, 8, 16)
    sequences: int = 64
    lengths: tuple[int, ...] = (32, 1)
    trained: int = 8
    threads: tuple[int, ...] = (1, 2)
    rounds: int = 5


@dataclass
class Timed:
    """Seconds of an arm in turn with the others."""

    length: int
    part: str
    threads: int
    arm: str
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Pair:
    """Two models with the same base weights and equal adapters, one of them switched over."""

    def __init__(self, size: Size) -> None:
        self.size = size
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=TOKENS,
            hidden_size=size.width,
            intermediate_size=size.inner,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
        )
        base = LlamaForCausalLM(config)
        shared = {id(parameter): parameter for parameter in base.parameters()}
        self.names = [f"user {i}" for i in range(size.adapters)]
        model: Any = None
        for i, name in enumerate(self.names):
            rank = size.ranks[i % len(size.ranks)]
            # Initialised so that no adapter is zero.
            lora = LoraConfig(r=rank, target_modules=LAYERS, init_lora_weights=False)
            if model is None:
                model = get_peft_model(base, lora, adapter_name=name)
            else:
                model.add_adapter(name, lora)
        self.models: dict[str, PeftModel] = {
            PEFT: model.eval(),
            OPS: copy.deepcopy(model, shared).eval(),
        }
        for one in self.models.values():
            one.requires_grad_(False)  # as adapters are that are loaded for inference
        enable(self.models[OPS])
        generator = torch.Generator().manual_seed(1)
        order = torch.randint(size.adapters, (size.sequences,), generator=generator)
        self.batch = [self.names[i] for i in order.tolist()]

    def ids(self, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        return torch.randint(TOKENS, (self.size.sequences, length), generator=generator)

    def forward(self, arm: str, length: int) -> Callable[[], Tensor]:
        """The logits of a batch; with `BASE` those of the model without adapters."""
        ids = self.ids(length)
        names = ["__base__"] * len(ids) if arm == BASE else self.batch
        model = self.models[PEFT if arm == BASE else arm]
        return lambda: model(input_ids=ids, adapter_names=names, use_cache=False).logits

    @contextmanager
    def adapters(self, arm: str, length: int) -> Iterator[Callable[[], None]]:
        """All LoRA layers one after the other, the base's outputs given: what adapters cost.

        As in a call of the model: what that does before and after is not in it.
        """
        model = self.models[arm]
        layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
        bases: list[Any] = [layer.base_layer for layer in layers]
        shape = self.size.sequences, length
        inputs = {n: torch.randn(*shape, n) for n in {base.in_features for base in bases}}
        given = {n: _Given(torch.zeros(*shape, n)) for n in {base.out_features for base in bases}}
        for layer, base in zip(layers, bases, strict=True):
            layer.base_layer = given[base.out_features]
        order = [inputs[base.in_features] for base in bases]

        def run() -> None:
            for layer, x in zip(layers, order, strict=True):
                layer(x)

        try:
            with model._enable_peft_forward_hooks(adapter_names=self.batch):
                yield run
        finally:
            for layer, base in zip(layers, bases, strict=True):
                layer.base_layer = base

    def training(self, arm: str, length: int) -> Callable[[], None]:
        """Gradients of all adapters, each of its own samples.

        peft has no way but one adapter after the other.
        """
        ids, model = self.ids(length), self.models[arm]

        def backward(own: Tensor, **more: Any) -> None:
            logits = model(input_ids=own, use_cache=False, **more).logits
            nn.functional.cross_entropy(logits.flatten(0, 1), own.flatten()).backward()

        def one_by_one() -> None:
            model.zero_grad()
            for name in dict.fromkeys(self.batch):
                model.set_adapter(name)
                backward(ids[[i for i, sample in enumerate(self.batch) if sample == name]])

        def together() -> None:
            model.zero_grad()
            model.set_requires_grad(self.names)
            backward(ids, adapter_names=self.batch)

        return one_by_one if arm == PEFT else together

    def adapter_bytes(self, arm: str) -> int:
        """What the adapters' parameters keep alive, each storage once."""
        storages = {
            p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
            for name, p in self.models[arm].named_parameters()
            if "lora_" in name
        }
        return sum(storages.values())


class _Given(nn.Module):
    """A layer whose output is given."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return self.output


@torch.no_grad()
def difference(pair: Pair, length: int) -> tuple[float, float]:
    """The largest difference of a logit between the arms, and the largest logit."""
    want, got = (pair.forward(arm, length)() for arm in (PEFT, OPS))
    return float((got - want).abs().max()), float(want.abs().max())


def times(pair: Pair) -> list[Timed]:
    """Of all parts, arms and numbers of threads, the arms in turn."""
    rounds, found = pair.size.rounds, []
    for length, threads in product(pair.size.lengths, pair.size.threads):
        with torch.no_grad():
            with pair.adapters(PEFT, length) as loop, pair.adapters(OPS, length) as ops:
                runs: dict[str, Callable[[], Any]] = {PEFT: loop, OPS: ops}
                found += _in_turn(rounds, length, ADAPTERS, threads, runs)
            runs = {arm: pair.forward(arm, length) for arm in (PEFT, OPS, BASE)}
            found += _in_turn(rounds, length, FORWARD, threads, runs)
    length = pair.size.trained
    for model in pair.models.values():
        model.train()
    for threads in pair.size.threads:
        runs = {arm: pair.training(arm, length) for arm in (PEFT, OPS)}
        found += _in_turn(rounds, length, TRAINING, threads, runs)
    for model in pair.models.values():
        model.eval()
    return found


def _in_turn(
    rounds: int, length: int, part: str, threads: int, runs: dict[str, Callable[[], Any]]
) -> list[Timed]:
    found = {arm: Timed(length, part, threads, arm) for arm in runs}
    with use_threads(threads):
        for run in runs.values():
            run()
        for _ in range(rounds):
            for arm, run in runs.items():
                began = time.perf_counter()
                run()
                found[arm].seconds.append(time.perf_counter() - began)
    return list(found.values())


@torch.no_grad()
def peak_bytes(pair: Pair, arm: str) -> int:
    """What a forward of the longest batch has allocated at its peak, by torch's own account.

    What the process holds would say more, and is off by a tenth from run to run.
    """
    run = pair.forward(arm, max(pair.size.lengths))
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(change for _, change in changes))
