"""What a LoRA layer does in a batch of mixed adapters, in place of peft's loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Embedding, LoraLayer
from torch import Tensor

from pyext.interface.lowrank_checks import wide
from pyext.ops import lowrank
from pyext_plugins.multilora.stacks import Stack, Stacks


class Batch:
    """Whose the samples of a batch are."""

    def __init__(self, samples: Sequence[str]) -> None:
        self.samples = list(samples)
        self.used = frozenset(samples)
        self._routes: dict[Any, Tensor] = {}

    def route(self, adapters: tuple[str, ...], rows: int, device: torch.device) -> Tensor:
        """[N] int64 for `lora_shrink`: of samples of ``rows`` rows each; -1 for other adapters."""
        key = (adapters, rows, device)
        if key not in self._routes:
            number = {name: e for e, name in enumerate(adapters)}
            own = torch.tensor([number.get(name, -1) for name in self.samples], device=device)
            self._routes[key] = own.repeat_interleave(rows)
        return self._routes[key]


class Batches:
    """The batch of a call of the model, looked at once for all layers."""

    def __init__(self) -> None:
        self._last = Batch([])

    def of(self, samples: Sequence[str]) -> Batch:
        """Mostly the last one: beams and parts of a batch have others."""
        if self._last.samples != samples:
            self._last = Batch(samples)
        return self._last


class Mixed:
    """A layer's `_mixed_batch_forward` during one call of the model."""

    def __init__(self, layer: LoraLayer, stacks: Stacks, batches: Batches) -> None:
        self.layer, self.stacks, self.batches = layer, stacks, batches
        self.embeds = isinstance(layer, Embedding)
        self.kept = stacks.kept()

    def __call__(self, x: Tensor, *args: Any, adapter_names: list[str], **kwargs: Any) -> Tensor:
        layer = self.layer
        if not self.embeds and self.stacks.dtype not in (x.dtype, wide(x)):
            # Then peft rounds x to the type of the adapters, which the ops do not.
            return type(layer)._mixed_batch_forward(
                layer, x, *args, adapter_names=adapter_names, **kwargs
            )
        kwargs.pop("alora_offsets", None)
        result: Tensor = layer.base_layer(x, *args, **kwargs)
        if not result.numel():
            return result
        batch = self.batches.of(adapter_names)
        masked = x if self.embeds else self._masked(x, batch.samples)
        for stack in self.stacks.parts:
            if not batch.used.isdisjoint(stack.names):
                result = self._added(result, x, masked, batch, stack)
        return result

    def _added(
        self, result: Tensor, x: Tensor, masked: Tensor, batch: Batch, stack: Stack
    ) -> Tensor:
        """With what the adapters of a stack add."""
        idx = batch.route(stack.names, result.shape[1:-1].numel(), x.device)
        A, B = stack.factors(batch.used)
        scaling = [float(self.layer.scaling[name]) for name in stack.names]
        if A is None:
            scale = _of_rows(stack.scale(scaling, result), idx)
            z = _looked_up(self.layer, x, batch, stack) * scale
        else:
            scale = stack.scale(self._made_up(scaling, stack), x)
            flat = masked.reshape(-1, x.shape[-1])
            z = lowrank.lora_shrink(flat, A, idx=idx, scale=scale, ranks=stack.ranks)
        if stack.biased:
            z = torch.cat([_of_rows(scale.new_tensor(scaling), idx), z], 1)
        return _expanded(result, z, B, idx, stack)

    def _made_up(self, scaling: list[float], stack: Stack) -> list[float]:
        """The scalings, with the factors of dropout; any where all is dropped and zero anyway."""
        if not self.kept:
            return scaling
        kept = [self.kept.get(name, 1.0) or 1.0 for name in stack.names]
        return [value / share for value, share in zip(scaling, kept, strict=True)]

    def _masked(self, x: Tensor, samples: Sequence[str]) -> Tensor:
        """Dropout of each sample by its adapter, but for the factor, which a scale makes up for."""
        keep = [self.kept.get(sample, 1.0) for sample in samples] if self.kept else [1.0]
        if min(keep) == 1:
            return x
        shares = torch.tensor(keep, device=x.device).view(-1, *[1] * (x.dim() - 1))
        return x.masked_fill(torch.rand(x.shape, device=x.device) >= shares, 0)


def _of_rows(values: Tensor, idx: Tensor) -> Tensor:
    """[N, 1]: of each row the value of its adapter, 0 of none."""
    return torch.where(idx >= 0, values[idx.clamp(min=0)], 0)[:, None]


def _looked_up(layer: Any, x: Tensor, batch: Batch, stack: Stack) -> Tensor:
    """[N, r]: in place of a down-projection, columns of the adapters' own small tables."""
    first, rank = next(iter(layer.lora_embedding_B.values())), max(stack.ranks)
    z = first.new_zeros(*x.shape, rank, dtype=wide(first))
    for name in dict.fromkeys(batch.samples):
        if name in stack.names:
            table = layer.lora_embedding_A[name].T
            own = [i for i, sample in enumerate(batch.samples) if sample == name]
            found = layer._embed(x[own], table).to(z.dtype)
            z[own] = F.pad(found, (0, rank - table.shape[1]))
    factor = layer._get_embed_scale()
    return (z if factor is None else z * factor.to(z.dtype)).view(-1, rank)


def _expanded(result: Tensor, z: Tensor, B: Tensor, idx: Tensor, stack: Stack) -> Tensor:
    if B.dtype not in (result.dtype, wide(result)):
        B = B.to(wide(result))
    given = result.is_leaf and result.requires_grad and torch.is_grad_enabled()
    inplace = result.is_contiguous() and not given
    flat = result.view(-1, result.shape[-1]) if inplace else result.reshape(-1, result.shape[-1])
    z, ranks = z.to(wide(result)), stack.ranks_of_B
    y = lowrank.lora_expand(z, B, flat, idx=idx, inplace=inplace, ranks=ranks)
    return y.view(result.shape)
