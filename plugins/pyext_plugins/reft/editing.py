"""Editors inside a transformers model, by hooks on its modules: none of its code is touched."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from pyext_plugins.reft.stack import Factors, Stack, bases

CACHES = ("cache", "past_key_values")  # what transformers calls the KV cache, now and before
NAME = "reft"  # of the editors among the modules of the model


class Site(NamedTuple):
    """A module whose output is edited.

    Args:
        path: of the module in the model.
        stack: the name of the stack its editors are in.
        place: which of the stack's sites it is.
        where: "tokens": at the tokens of `Editing.positions`; "all": everywhere.
    """

    path: str
    stack: str
    place: int
    where: Literal["tokens", "all"]


class Editing(nn.Module):
    """Editors in a model: what `reft` and `mrt` share.

    The model stays the object it was, and what it returns stays of its type: ``generate``,
    ``Trainer`` and peft see the model they know. The editors are among its modules, as "reft". Its
    own parameters are frozen. Tokens are edited in the prefill only: while a KV cache is filled,
    tokens pass as they are.

    Args:
        model: a transformers model, or a peft model of one.
        stacks: of editors, by name.
        sites: where they stand; the sites of a stack share its editors equally, in order.
        freeze: False leaves the model's parameters as they are: to train a head or a LoRA as well.

    Raises:
        ValueError: there are editors in the model already.
    """

    METHOD: ClassVar[str]  # in files

    def __init__(
        self,
        model: nn.Module,
        stacks: Mapping[str, Stack],
        sites: Sequence[Site],
        freeze: bool = True,
    ) -> None:
        super().__init__()
        if hasattr(model, NAME):
            raise ValueError(f"model: there are editors in it already; remove them by .{NAME}")
        self.stacks = nn.ModuleDict(stacks)
        self.sites = list(sites)
        self.enabled = True
        self._model = (model,)  # not a module of this one: it is the other way round
        self._inputs: dict[str, Any] | None = None  # of the call that runs
        self._goes_on = False  # from tokens in a cache
        self._located: tuple[Tensor, Tensor] | None = None
        self._factors: dict[str, list[Factors]] | None = None
        self._kept: tuple[tuple[object, ...], dict[str, list[Factors]]] | None = None
        if freeze:
            model.requires_grad_(False)
        base = base_of(model)
        self._handles = [
            # Before all others: what a model collects as its hidden states are edited ones.
            base.get_submodule(site.path).register_forward_hook(
                partial(self._after_module, site), prepend=True
            )
            for site in self.sites
        ]
        # A peft model calls what is in it past its hooks, and is passed by in `generate`.
        for outer in dict.fromkeys((model, base)):
            self._handles += [
                outer.register_forward_pre_hook(self._before_model, with_kwargs=True),
                outer.register_forward_hook(self._after_model, always_call=True),
            ]
        model.add_module(NAME, self)
        self.train(model.training)

    @abstractmethod
    def positions(self, inputs: Mapping[str, Any], hidden: Tensor) -> Tensor:
        """Rows to edit, [B, prefix + suffix], of hidden states [B, S, D]; -1 for none."""

    @property
    @abstractmethod
    def prefix(self) -> int:
        """How many columns of `positions` are the prefix's."""

    @property
    def model(self) -> nn.Module:
        """The model with the editors in it."""
        return self._model[0]

    @property
    def trained(self) -> int:
        """How many values the editors have to train."""
        return sum(own.numel() for own in self.parameters() if own.requires_grad)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """While open, the model is what it was."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def train(self, mode: bool = True) -> Self:
        """Also forgets what was kept: between two modes a parameter may have moved unseen."""
        self._kept = None
        return super().train(mode)

    def remove(self) -> nn.Module:
        """Take the editors out of the model, and return it; its parameters stay frozen."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        delattr(self.model, NAME)
        return self.model

    def reset(self) -> None:
        """Start anew, from torch's generator."""
        for stack in self.named_stacks().values():
            stack.reset()

    def factors(self) -> dict[str, Factors]:
        """A, B and a of every stack, orthonormalised in one call for all that are of one shape."""
        stacks = self.named_stacks()
        return {
            name: stack.factors(R)
            for (name, stack), R in zip(stacks.items(), bases(stacks.values()), strict=True)
        }

    def named_stacks(self) -> dict[str, Stack]:
        """What `stacks` holds."""
        return {name: cast(Stack, stack) for name, stack in self.stacks.items()}

    def _before_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        names = [name for name in inspect.signature(module.forward).parameters if name != "kwargs"]
        self._inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        # Asked now: the first block fills the cache.
        self._goes_on = cache_is_filled(self._inputs)
        self._located = self._factors = None

    def _after_model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._inputs = self._located = self._factors = None

    def _after_module(
        self, site: Site, module: nn.Module, args: tuple[Any, ...], output: Any
    ) -> Any:
        if not self.enabled:
            return None
        # Depending on the model: the hidden state, or a tuple that begins with it.
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        located = self._everywhere(hidden) if site.where == "all" else self._at_tokens(site, hidden)
        if located is None:
            return None
        factors = self._factors_of(site)
        rows, group = located
        edited = self.named_stacks()[site.stack].edit(
            hidden.contiguous(),
            factors,
            rows,
            group if len(factors.A) > 1 else None,
            inplace=may_write(hidden, args),
        )
        if edited is hidden:
            return None
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    def _everywhere(self, hidden: Tensor) -> tuple[Tensor, None]:
        return torch.arange(hidden.shape[:-1].numel(), device=hidden.device), None

    def _at_tokens(self, site: Site, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
        """Rows, and which of a site's two editors each has; None while a cache is filled.

        Found once a call, by the first block that needs them.
        """
        if self._inputs is None:
            raise RuntimeError(
                f"{site.path}: which tokens to edit is known within a call of the whole model; "
                f"call {type(self.model).__name__}, not a part of it, or use .disabled()"
            )
        if self._goes_on:
            if self.training and torch.is_grad_enabled():
                raise ValueError(
                    "cache: expected an empty cache in training: tokens are edited in "
                    "the prefill only"
                )
            return None
        if self._located is None:
            rows = self.positions(self._inputs, hidden).to(hidden.device)
            ends = (torch.arange(rows.shape[1], device=rows.device) >= self.prefix).long()
            self._located = rows.flatten(), ends.expand(rows.shape).flatten()
        return self._located

    def _factors_of(self, site: Site) -> Factors:
        if self._inputs is None:
            return self._computed()[site.stack][site.place]
        if self._factors is None:
            self._factors = self._computed()
        return self._factors[site.stack][site.place]

    def _computed(self) -> dict[str, list[Factors]]:
        """By stack and place; computed anew for a training step, else kept while nothing moves.

        Fused optimizers move parameters without telling, but not without a gradient.
        """
        parameters = list(self.parameters())
        trains = torch.is_grad_enabled() and any(own.requires_grad for own in parameters)
        moves = trains or any(own.grad is not None for own in parameters)
        key = tuple((own.data_ptr(), own._version, own.dtype, own.device) for own in parameters)
        if not moves and self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        found = {}
        for name, factors in self.factors().items():
            sites = sum(site.stack == name for site in self.sites)
            found[name] = factors.split(len(factors.A) // sites)
        self._kept = None if moves else (key, found)
        return found


def base_of(model: nn.Module) -> nn.Module:
    """The transformers model inside a peft model, or the model itself."""
    inside = getattr(model, "get_base_model", None)
    return cast(nn.Module, inside()) if callable(inside) else model


def may_write(hidden: Tensor, args: Sequence[Any]) -> bool:
    """Whether a module's output may be edited where it lies: nothing else reads it.

    With a gradient, where a residual sum made it, whose backward pass does not need its result.
    """
    if not hidden.is_contiguous() or hidden._base is not None:
        return False
    storage = hidden.untyped_storage().data_ptr()
    if any(isinstance(a, Tensor) and a.untyped_storage().data_ptr() == storage for a in args):
        return False
    if not (torch.is_grad_enabled() and hidden.requires_grad):
        return True
    return type(hidden.grad_fn).__name__ == "AddBackward0"


def cache_is_filled(inputs: Mapping[str, Any]) -> bool:
    """Whether a call goes on from tokens that were read before."""
    for name in CACHES:
        cache = inputs.get(name)
        if cache is not None:
            length = getattr(cache, "get_seq_length", None)
            return bool(length() > 0) if callable(length) else len(cache) > 0
    return False


def real_tokens(inputs: Mapping[str, Any], hidden: Tensor) -> Tensor:
    """[B, S] bool, True where a token is no padding, for hidden states [B, S, D].

    Raises:
        ValueError: the attention mask, or the hidden states, are of another shape.
    """
    if hidden.dim() != 3:
        raise ValueError(f"hidden states: expected [B, S, D], got {list(hidden.shape)}")
    mask, tokens = inputs.get("attention_mask"), hidden.shape[:2]
    if mask is None:
        return torch.ones(tokens, dtype=torch.bool, device=hidden.device)
    if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[2] == tokens[1]:
        # As `generate` gives it with a static cache: which tokens see themselves.
        seen = mask[:, 0, :, : tokens[1]].diagonal(dim1=1, dim2=2)
        mask = seen == 0 if seen.is_floating_point() else seen
    if not isinstance(mask, Tensor) or mask.shape != tokens:
        got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask: expected [B, S] of the hidden states, {list(tokens)}, got {got}"
        )
    return mask.to(hidden.device) != 0


def answers(inputs: Mapping[str, Any], hidden: Tensor) -> Tensor | None:
    """Labels [B, S] of a causal model's call, if any.

    Raises:
        ValueError: they are of another shape.
    """
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        return None
    if labels.shape != hidden.shape[:2]:
        raise ValueError(
            f"labels: expected [B, S] of the hidden states, {list(hidden.shape[:2])}, got "
            f"{list(labels.shape)}"
        )
    return labels.to(hidden.device)
