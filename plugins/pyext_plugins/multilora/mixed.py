"""Switching a peft model's batches of mixed adapters over to the ops.

What peft does with ``adapter_names`` stays: its checks, "__base__", beam search, layers that are
not LoRA. What it does in each LoRA layer, a loop over the adapters of the batch with the gathering,
adding and scattering of their samples, becomes one `lora_shrink` and one `lora_expand`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from pyext_plugins.multilora.layers import Batches, Mixed
from pyext_plugins.multilora.stacks import Stacks, why_not

HOOKS = "_enable_peft_forward_hooks"  # what a PeftModel enters around forward and generate
FORWARD = "_mixed_batch_forward"  # what a layer calls in a batch of mixed adapters
CHECKPOINT = "_gradient_checkpointing_func"  # what a checkpointed layer of transformers calls


def enable(model: PeftModel) -> dict[str, str]:
    """Have batches with ``adapter_names`` computed by the ops, in evaluation and in training.

    ``model(..., adapter_names=[...])`` and ``model.generate(..., adapter_names=[...])`` are called
    as before, and give what they gave up to rounding: rank intermediates are float32, also where
    the adapters are of half precision. Adapters may differ in rank, scaling and dropout, have
    biases, and come and go.

    In training, which peft refuses, the gradient of a sample goes to its own adapter, and adapters
    without samples have none. peft leaves but the active adapter trainable:
    ``model.set_requires_grad([...])`` changes that.

    The parameters of the adapters become views of a stack for each layer, in which they lie one
    after another, so that they take no more memory than before. Up-projections do so while they are
    frozen, as those of adapters loaded for inference are; of others the used ones are copied in
    every call.

    Args:
        model: with LoRA adapters.

    Returns:
        Layers that the ops do not serve, and why: these go through peft's loop as before. An
        adapter added later may change which they are; calling again tells.

    Raises:
        TypeError: the model is not a PeftModel.
        NotImplementedError: its adapters are not LoRA.
    """
    lora = _lora_model(model)
    switch = _switch(lora)
    if switch is None:
        switch = Switch(lora)
        setattr(lora, HOOKS, switch.hooks)
    return switch.restack()


def disable(model: PeftModel) -> None:
    """Give batches with ``adapter_names`` back to peft, and parameters memory of their own.

    Raises:
        TypeError, NotImplementedError: as `enable`.
    """
    lora = _lora_model(model)
    switch = _switch(lora)
    if switch is not None:
        delattr(lora, HOOKS)
        switch.release()


def is_enabled(model: PeftModel) -> bool:
    """Whether the ops compute the model's batches of mixed adapters."""
    return _switch(_lora_model(model)) is not None


def _lora_model(model: PeftModel) -> LoraModel:
    if not isinstance(model, PeftModel):
        raise TypeError(f"model: expected a PeftModel, got {type(model).__name__}")
    if not isinstance(model.base_model, LoraModel):
        kind = type(model.base_model).__name__
        raise NotImplementedError(f"model: expected LoRA adapters, got {kind}")
    return model.base_model


def _switch(lora: LoraModel) -> Switch | None:
    method = vars(lora).get(HOOKS)
    return None if method is None else method.__self__


class Switch:
    """The stacks of a model, and what is done around its forward."""

    def __init__(self, lora: LoraModel) -> None:
        self.lora = lora
        self.stacks: dict[LoraLayer, Stacks] = {}
        self._configs: dict[str, Any] = {}

    def refresh(self) -> None:
        """Have the stacks follow the adapters: in every call of the model, mostly for nothing.

        Layers get adapters and lose them together with a config of the model.
        """
        configs = self.lora.peft_config
        same = list(configs) == list(self._configs) and all(
            configs[name] is config for name, config in self._configs.items()
        )
        if not same or not all(own.hold(layer) for layer, own in self.stacks.items()):
            self.restack()

    @torch.inference_mode(False)  # else parameters would be what no backward can use
    def restack(self) -> dict[str, str]:
        """Make the stacks those of the adapters there are; returns layers without, and why."""
        self._configs = dict(self.lora.peft_config)
        tied = {
            name
            for name, config in self._configs.items()
            if getattr(config, "ensure_weight_tying", False)
        }
        left_out: dict[str, str] = {}
        before, self.stacks = self.stacks, {}
        for name, layer in self.lora.model.named_modules():
            if not isinstance(layer, LoraLayer):
                continue
            known = before.get(layer)
            if known is not None and known.hold(layer):
                self.stacks[layer] = before.pop(layer)
                continue
            reason = why_not(layer, tied)
            if reason:
                left_out[name] = reason
            else:
                self.stacks[layer] = Stacks(layer)
        for gone in before.values():
            gone.let_go()
        return left_out

    def release(self) -> None:
        for layer, stacks in self.stacks.items():
            stacks.release(layer)

    @contextmanager
    def hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """In place of LoraModel's: what holds during a call of the model."""
        names = kwargs.get("adapter_names")
        if names is None:
            with LoraModel._enable_peft_forward_hooks(self.lora, *args, **kwargs):
                yield
            return
        self.refresh()
        batches = Batches()
        mixed = {layer: Mixed(layer, own, batches) for layer, own in self.stacks.items()}
        with ExitStack() as context:
            self._enter_hooks_of_peft(context, *args, **kwargs)
            self._check_trainable(names)
            for layer, forward in mixed.items():
                _put(context, layer, FORWARD, forward)
            for module in self.lora.modules() if self.lora.training else ():
                if getattr(module, "gradient_checkpointing", False) and hasattr(module, CHECKPOINT):
                    again = _Again(module, names, mixed)
                    _put(context, module, CHECKPOINT, partial(again, getattr(module, CHECKPOINT)))
            yield

    def _enter_hooks_of_peft(self, context: ExitStack, *args: Any, **kwargs: Any) -> None:
        """They put ``adapter_names`` before every layer, and refuse a model in training."""
        hooks = LoraModel._enable_peft_forward_hooks(self.lora, *args, **kwargs)
        training, self.lora.training = self.lora.training, False
        try:
            hooks.__enter__()
        finally:
            self.lora.training = training
        # Told of an error they would stay where they are.
        context.callback(hooks.__exit__, None, None, None)

    def _check_trainable(self, names: Sequence[str]) -> None:
        if not self.lora.training or not torch.is_grad_enabled():
            return
        frozen = set(names) - {"__base__"}
        for path, parameter in self.lora.named_parameters():
            if parameter.requires_grad:
                frozen.difference_update(path.split("."))
            if not frozen:
                return
        raise ValueError(
            f"adapter_names: adapter {min(frozen)!r} is frozen, and would not be trained; "
            f"model.set_requires_grad({min(frozen)!r}) changes that"
        )


class _Again:
    """Part of a model that is computed again in the backward, long after the call.

    Args:
        module: the part.
        names: the adapters of the samples.
        mixed: what the layers of the model do with them.
    """

    def __init__(
        self, module: nn.Module, names: Sequence[str], mixed: Mapping[LoraLayer, Mixed]
    ) -> None:
        self.module, self.names, self.mixed = module, names, mixed

    def __call__(
        self,
        checkpoint: Callable[..., Any],
        function: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """``checkpoint(function, ...)``, with ``function`` knowing the adapters at all times."""

        def again(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as context:
                for layer in self.module.modules():
                    if isinstance(layer, (LoraLayer, AuxiliaryTrainingWrapper)):
                        hook = layer.register_forward_pre_hook(self._name, with_kwargs=True)
                        context.callback(hook.remove)
                    if isinstance(layer, LoraLayer) and layer in self.mixed:
                        _put(context, layer, FORWARD, self.mixed[layer])
                return function(*args, **kwargs)

        return checkpoint(again, *args, **kwargs)

    def _name(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return args, {**kwargs, "adapter_names": self.names}


def _put(context: ExitStack, module: nn.Module | LoraLayer, name: str, value: Any) -> None:
    """Give a module another attribute for as long as the context lasts."""
    own = vars(module).get(name)
    vars(module)[name] = value

    def back() -> None:
        if own is None:
            del vars(module)[name]
        else:
            vars(module)[name] = own

    context.callback(back)
