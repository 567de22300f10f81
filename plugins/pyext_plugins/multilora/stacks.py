"""The adapters of a layer in common pieces of memory, of which peft's parameters become views.

The ops read the factors of a layer one after another, [sum of ranks, D]. A copy of them would
double the adapters' memory and go stale with every optimizer step, so the parameters move into such
a stack instead: `Parameter` objects stay what they are, and an update in place is an update of the
stack.

An up-projection [Do, r] then lies transposed. It does so only while it is frozen: the state of an
optimizer has the layout of its parameter, and a fused one counts on that without a look.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora.layer import Embedding, Linear, LoraLayer
from torch import Tensor, nn

from pyext.interface.lowrank_checks import MAX_RAGGED, MAX_RANK, wide


@dataclass(frozen=True, eq=False)
class Adapter:
    """Parameters of one adapter: a [r, Din] (an embedding keeps its own), b [Do, r], bias [Do]."""

    a: nn.Parameter | None
    b: nn.Parameter
    bias: nn.Parameter | None

    @property
    def rank(self) -> int:
        return self.b.shape[1]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for p in (self.a, self.b, self.bias) if p is not None]

    @property
    def trained(self) -> bool:
        """Whether an optimizer may act on the up-projection: on what is needed, or has a grad."""
        onto = (self.b, self.bias)
        return any(p is not None and (p.requires_grad or p.grad is not None) for p in onto)

    @property
    def most(self) -> int:
        """The largest rank with which the ops would serve a layer of this size."""
        limits = [MAX_RANK, len(self.b)] if self.bias is None else [MAX_RANK - 1, len(self.b) - 1]
        return min(limits if self.a is None else [*limits, self.a.shape[1]])


def adapters_of(layer: LoraLayer) -> dict[str, Adapter]:
    """The adapters of a layer, in the order in which they were added."""
    if isinstance(layer, Embedding):
        return {name: Adapter(None, b, None) for name, b in layer.lora_embedding_B.items()}
    found = {}
    for name, into in layer.lora_A.items():
        onto: Any = layer.lora_B[name]
        found[name] = Adapter(cast(Any, into).weight, onto.weight, onto.bias)
    return found


def why_not(layer: LoraLayer, tied: Container[str]) -> str | None:
    """Why the ops cannot serve a layer; None if they can.

    Args:
        tied: adapters that share parameters between layers.
    """
    # Not their subclasses: quantised and parallel layers do more.
    if type(layer) not in (Linear, Embedding):
        return f"the ops do not serve {type(layer).__module__}.{type(layer).__name__}"
    adapters = adapters_of(layer)
    for name, adapter in adapters.items():
        data = adapter.b.data
        if name in layer.lora_variant:
            return f"adapter {name!r} is no plain LoRA: {type(layer.lora_variant[name]).__name__}"
        if name in tied:
            return f"adapter {name!r} ties weights of several layers"
        if adapter.rank > adapter.most:
            return f"adapter {name!r} has rank {adapter.rank}, more than {adapter.most}"
        if type(data) is not Tensor or data.is_meta or not data.is_floating_point():
            return f"the weights of adapter {name!r} are not plain tensors in memory"
    kinds = {(p.dtype, p.device) for adapter in adapters.values() for p in adapter.parameters}
    if len(kinds) > 1:
        found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        return f"adapters differ in type: {found}"
    return None


@dataclass(frozen=True, eq=False)
class Place:
    """Where a parameter lies in a stack: some rows, as they are or transposed."""

    parameter: nn.Parameter
    adapter: str
    rows: slice | int
    turned: bool = False

    def within(self, stack: Tensor) -> Tensor:
        part = stack[self.rows]
        return part.T if self.turned else part


class Stack:
    """Factors one after another: ``A`` [sum of ranks, Din] (None of an embedding), ``B`` [.., Do].

    Where the adapters have biases, these are the first of an adapter's rows of B, and what is
    multiplied with B has one column more at the front.

    Args:
        adapters: whose parameters become views of the stacks; but for those of B if they are
            trained, which are copied in every call.
    """

    def __init__(self, adapters: dict[str, Adapter]) -> None:
        first = next(iter(adapters.values()))
        self.names, self.biased = tuple(adapters), first.bias is not None
        self.ranks = tuple(adapter.rank for adapter in adapters.values())
        self.ranks_of_B = tuple(rank + self.biased for rank in self.ranks)
        self._scale: tuple[Any, Tensor] | None = None
        self._into, self._onto = [], []
        into = onto = 0  # the next row of A and of B
        for name, adapter in adapters.items():
            if adapter.a is not None:
                self._into.append(Place(adapter.a, name, slice(into, into + adapter.rank)))
                into += adapter.rank
            if adapter.bias is not None:
                self._onto.append(Place(adapter.bias, name, onto))
                onto += 1
            own = slice(onto, onto + adapter.rank)
            self._onto.append(Place(adapter.b, name, own, turned=True))
            onto += adapter.rank
        self._A = self._B = None
        if first.a is not None:
            self._A = first.a.data.new_empty(sum(self.ranks), first.a.shape[1])
            _move(self._A, self._into)
        if first.trained:
            for place in self._onto:
                _move_out(place.parameter)
        else:
            self._B = self._empty()
            _move(self._B, self._onto)
        turned = [place.parameter for place in self._onto if self._B is not None]
        self._hooks = [_before_a_step(parameter) for parameter in turned]

    def _empty(self) -> Tensor:
        """For B."""
        b = self._onto[-1].parameter
        return b.data.new_empty(sum(self.ranks_of_B), len(b))

    def scale(self, values: Sequence[float], like: Tensor) -> Tensor:
        """[E]: the values as a tensor for the ops, kept for as long as they do not change."""
        key = (*values, like.device, wide(like))
        if self._scale is None or self._scale[0] != key:
            with torch.inference_mode(False):  # a later backward may need it
                self._scale = key, torch.tensor(values, device=like.device, dtype=wide(like))
        return self._scale[1]

    def factors(self, used: Container[str]) -> tuple[Tensor | None, Tensor]:
        """A and B, from which gradients go to the parameters of the used adapters alone.

        An adapter without samples then has no gradient, rather than one of zeros that an
        optimizer with momentum or decay would act upon.
        """
        A, B = self._A, self._B
        if B is not None and not torch.is_grad_enabled():
            return A, B
        into, onto = (
            [place for place in places if place.adapter in used]
            for places in (self._into, self._onto)
        )
        if B is None:
            B = self._empty()
            for place in onto:
                place.within(B).copy_(place.parameter.data)
        return None if A is None else _attach(A, into), _attach(B, onto)

    def let_go(self) -> None:
        """Others take over."""
        for hook in self._hooks:
            hook.remove()


def _move(stack: Tensor, places: Sequence[Place]) -> None:
    """Make parameters views of a stack."""
    for place in places:
        view = place.within(stack)
        view.copy_(place.parameter.data)
        place.parameter.data = view


def _move_out(parameter: nn.Parameter) -> None:
    """Give a parameter memory of its own, in the usual layout."""
    parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


def _before_a_step(parameter: nn.Parameter) -> Any:
    """Have a parameter move out when it gets a gradient after all, not being frozen any more."""
    needed, parameter.requires_grad = parameter.requires_grad, True
    hook = parameter.register_post_accumulate_grad_hook(_leave)
    parameter.requires_grad = needed
    return hook


def _leave(parameter: Tensor) -> None:
    parameter.data = parameter.data.contiguous()
    if parameter.grad is not None:
        parameter.grad = parameter.grad.contiguous()


class Stacks:
    """All adapters of one layer, in one stack but for what a stack must have in common."""

    def __init__(self, layer: Any) -> None:
        groups: dict[tuple[int, bool, bool], dict[str, Adapter]] = {}
        for e, (name, adapter) in enumerate(adapters_of(layer).items()):
            key = (e // MAX_RAGGED, adapter.bias is not None, adapter.trained)
            groups.setdefault(key, {})[name] = adapter
        self.parts = [Stack(group) for group in groups.values()]
        self.dtype = next(iter(adapters_of(layer).values())).b.dtype
        self._dropouts = {
            name: module
            for name, module in layer.lora_dropout.items()
            if isinstance(module, nn.Dropout) and not isinstance(layer, Embedding)
        }
        self._state = _state(layer)
        self._hook = layer.register_state_dict_post_hook(_give_own_memory)

    def hold(self, layer: LoraLayer) -> bool:
        """Whether the layer has these adapters, and its parameters are still views of the stacks.

        They are not after an adapter came or went, or the model was moved or cast.
        """
        return self._state == _state(layer)

    def kept(self) -> dict[str, float]:
        """The share of its inputs that an adapter keeps now, of those that drop any."""
        return {name: 1 - own.p for name, own in self._dropouts.items() if own.training and own.p}

    def release(self, layer: LoraLayer) -> None:
        """Give parameters that are views of the stacks memory of their own again."""
        self.let_go()
        if self.hold(layer):
            for adapter in adapters_of(layer).values():
                for parameter in adapter.parameters:
                    _move_out(parameter)

    def let_go(self) -> None:
        """Others take over, or the layer is gone."""
        self._hook.remove()
        for stack in self.parts:
            stack.let_go()


def _state(layer: LoraLayer) -> tuple[list[Any], ...]:
    """Adapters of a layer, which parameters they have, where these are, and which are trained.

    A parameter at the address of a view is that view. Looked at in every call of the model, and so
    without the ways of `nn.Module` to a parameter, which take most of the time.
    """
    if isinstance(layer, Embedding):
        names, parameters = list(layer.lora_embedding_B), list(layer.lora_embedding_B.values())
    else:
        names = list(layer.lora_A)
        modules = (*layer.lora_A.values(), *layer.lora_B.values())
        parameters = [p for module in modules for p in module._parameters.values() if p is not None]
    return (
        names,
        [id(p) for p in parameters],
        [p.data_ptr() for p in parameters],
        [p.requires_grad or p.grad is not None for p in parameters],
    )


def _attach(stack: Tensor, places: Sequence[Place]) -> Tensor:
    own = [place for place in places if place.parameter.requires_grad]
    if not own or not torch.is_grad_enabled():
        return stack
    attached: Tensor = _Attached.apply(stack, own, *(place.parameter for place in own))
    return attached


class _Attached(torch.autograd.Function):
    """A stack as a function of the parameters that it holds; nothing is copied."""

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
