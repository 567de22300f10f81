"""All adapters of a layer in one piece of memory, of which peft's parameters become views.

The ops read factors as stacks [E, r, D]. A copy of them would double the adapters' memory and go
stale with every optimizer step, so the parameters move into the stack instead: `Parameter` objects
stay what they are, and an update in place is an update of the stack.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Embedding, Linear, LoraLayer
from torch import Tensor, nn

from pyext.interface.lowrank_checks import MAX_RANK


@dataclass(frozen=True)
class Adapter:
    """Parameters of one adapter: a [r, Din] (an embedding keeps its own), b [Do, r], bias [Do]."""

    a: nn.Parameter | None
    b: nn.Parameter
    bias: nn.Parameter | None

    @property
    def rank(self) -> int:
        return self.b.shape[1]


def adapters_of(layer: LoraLayer) -> dict[str, Adapter]:
    """The adapters of a layer, in the order in which they were added."""
    if isinstance(layer, Embedding):
        return {name: Adapter(None, b, None) for name, b in layer.lora_embedding_B.items()}
    return {
        name: Adapter(into.weight, layer.lora_B[name].weight, layer.lora_B[name].bias)
        for name, into in layer.lora_A.items()
    }


def why_not(layer: LoraLayer, tied: set[str]) -> str | None:
    """Why the ops cannot serve a layer; None if they can.

    Args:
        tied: adapters that share parameters between layers.
    """
    # Not their subclasses: quantised and parallel layers do more.
    if type(layer) not in (Linear, Embedding):
        return f"the ops do not serve {type(layer).__module__}.{type(layer).__name__}"
    adapters = adapters_of(layer)
    for name, adapter in adapters.items():
        most = min(MAX_RANK, len(adapter.b)) - (adapter.bias is not None)
        if adapter.a is not None:
            most = min(most, adapter.a.shape[1])
        data = adapter.b.data
        if name in layer.lora_variant:
            return f"adapter {name!r} is no plain LoRA: {type(layer.lora_variant[name]).__name__}"
        if name in tied:
            return f"adapter {name!r} ties weights of several layers"
        if adapter.rank > most:
            return f"adapter {name!r} has rank {adapter.rank}, more than {most}"
        if type(data) is not Tensor or data.is_meta or not data.is_floating_point():
            return f"the weights of adapter {name!r} are not plain tensors in memory"
    factors = [p for adapter in adapters.values() for p in (adapter.a, adapter.b) if p is not None]
    kinds = {(factor.dtype, factor.device) for factor in factors}
    if len(kinds) > 1:
        found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        return f"adapters differ in type: {found}"
    return None


@dataclass(frozen=True)
class Place:
    """Where a parameter lies in a stack: some rows of an adapter, as they are or transposed."""

    parameter: nn.Parameter
    adapter: int
    rows: slice | int
    turned: bool = False

    def within(self, stack: Tensor) -> Tensor:
        part = stack[self.adapter, self.rows]
        return part.T if self.turned else part


def _into(layer: LoraLayer) -> list[Place]:
    """Places of the down-projections, none of an embedding."""
    return [
        Place(adapter.a, e, slice(adapter.rank))
        for e, adapter in enumerate(adapters_of(layer).values())
        if adapter.a is not None
    ]


def _onto(layer: LoraLayer) -> list[Place]:
    """Places of the up-projections, and of biases in the last row."""
    places = []
    for e, adapter in enumerate(adapters_of(layer).values()):
        places.append(Place(adapter.b, e, slice(adapter.rank), turned=True))
        if adapter.bias is not None:
            places.append(Place(adapter.bias, e, -1))
    return places


class Stack:
    """The stacks of one layer: ``A`` [E, r, Din] (None of an embedding), ``B`` [E, r, Do].

    Adapters of lesser rank are filled up with zeros. Where an adapter has a bias, B has one row
    more, and what is multiplied with it one column more.

    Args:
        layer: whose parameters become views of the stacks.
    """

    def __init__(self, layer: LoraLayer) -> None:
        adapters = adapters_of(layer)
        self.names = tuple(adapters)
        self.biased = any(adapter.bias is not None for adapter in adapters.values())
        first = next(iter(adapters.values()))
        self.rank = max(adapter.rank for adapter in adapters.values())
        self.A = None
        if first.a is not None:
            self.A = first.a.data.new_zeros(len(adapters), self.rank, first.a.shape[1])
        rows = self.rank + self.biased
        self.B = first.b.data.new_zeros(len(adapters), rows, first.b.shape[0])
        for stack, places in ((self.A, _into(layer)), (self.B, _onto(layer))):
            for place in places:
                assert stack is not None
                view = place.within(stack)
                view.copy_(place.parameter.data)
                place.parameter.data = view
        self._addresses = _addresses(layer)
        self._hook = layer.register_state_dict_post_hook(_give_own_memory)

    def holds(self, layer: LoraLayer) -> bool:
        """Whether the layer has these adapters, and its parameters are still views of the stacks.

        They are not after an adapter came or went, or the model was moved or cast.
        """
        return tuple(adapters_of(layer)) == self.names and self._addresses == _addresses(layer)

    def release(self, layer: LoraLayer) -> None:
        """Give parameters that are views of the stacks memory of their own again."""
        self.let_go()
        if self.holds(layer):
            for place in (*_into(layer), *_onto(layer)):
                data = place.parameter.data
                place.parameter.data = data.clone(memory_format=torch.contiguous_format)

    def let_go(self) -> None:
        """Another stack takes over."""
        self._hook.remove()

    def factors(self, layer: LoraLayer, used: Container[int]) -> tuple[Tensor | None, Tensor]:
        """A and B, from which gradients go to the parameters of the used adapters alone.

        An adapter without samples then has no gradient, rather than one of zeros that an
        optimizer with momentum or decay would act upon.
        """
        A = None if self.A is None else _attach(self.A, _into(layer), used)
        return A, _attach(self.B, _onto(layer), used)


def _addresses(layer: LoraLayer) -> list[tuple[int, torch.dtype]]:
    """Where the parameters of a layer are: of views as good as the views themselves."""
    return [
        (parameter.data_ptr(), parameter.dtype)
        for adapter in adapters_of(layer).values()
        for parameter in (adapter.a, adapter.b, adapter.bias)
        if parameter is not None
    ]


def _attach(stack: Tensor, places: Sequence[Place], used: Container[int]) -> Tensor:
    own = [p for p in places if p.adapter in used and p.parameter.requires_grad]
    if not own or not torch.is_grad_enabled():
        return stack
    attached: Tensor = _Attached.apply(stack, own, *(place.parameter for place in own))
    return attached


class _Attached(torch.autograd.Function):
    """A stack as a function of the parameters that are its views; nothing is copied."""

    @staticmethod
    def forward(ctx: Any, stack: Tensor, places: list[Place], *parameters: Tensor) -> Tensor:
        ctx.places = places
        # Saved only so that a change between forward and backward is an error, as always.
        ctx.save_for_backward(*parameters)
        return stack.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        return (None, None, *(place.within(grads[0]) for place in ctx.places))


def _give_own_memory(layer: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """A saved adapter must not take the whole stack with it, and some formats want it contiguous.

    With ``keep_vars`` a state dict holds the parameters themselves, and they stay.
    """
    for name, value in state.items():
        if name.startswith(f"{prefix}lora_") and not isinstance(value, nn.Parameter):
            state[name] = value.clone(memory_format=torch.contiguous_format)
