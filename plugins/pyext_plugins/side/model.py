"""A frozen backbone with a side network beside it, in the place of the backbone alone.

    encoder = SideModel(AutoModel.from_pretrained(path), UniptConfig(reduction=2))
    model.bert = SideModel(model.bert, SherlConfig())       # or: attach(model, SherlConfig())

Only the side network is trained. The output is the backbone's own output object, with
``last_hidden_state`` (and ``pooler_output``) made of the adapted features.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyext_plugins.blocks import find_layers, is_causal
from pyext_plugins.side.base import Beside
from pyext_plugins.side.config import LadderConfig, SherlConfig, SideConfig, UniptConfig
from pyext_plugins.side.ladder import LadderSide
from pyext_plugins.side.sherl import SherlSide
from pyext_plugins.side.summary import pool, summary_name, summary_position
from pyext_plugins.side.taps import collect, replace_input
from pyext_plugins.side.unipt import UniptSide


class SideModel(Beside):
    """A frozen backbone and the side network that adapts it.

    Args:
        backbone: a transformers encoder: BERT and its kin, ViT, a CLIP tower, T5's encoder. It is
            frozen in place, and stays in evaluation mode unless the config says otherwise.
        config: which method, and how.

    Attributes it does not have are the backbone's.

    Raises:
        ValueError: the config does not fit the backbone.
    """

    def __init__(self, backbone: nn.Module, config: SideConfig) -> None:
        layers = find_layers(backbone, config.layers)
        super().__init__(backbone, config)
        self.taps = tap_numbers(config, len(layers))
        self.side = make_side(backbone, layers, config, len(self.taps))
        self.train(self.training)

    @property
    def layers(self) -> nn.ModuleList:
        return find_layers(self.backbone, self.side_config.layers)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "backbone":
                raise
            return getattr(self.backbone, name)

    def forward(
        self,
        *args: Any,
        taps: Sequence[Tensor] | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Take what the backbone takes and return what it returns, adapted.

        Args:
            taps: hidden states that the backbone gave for these inputs before, in the order of
                `taps`: the backbone is then not run, or of it the last block alone.
            return_dict: False for a tuple.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
        """
        inputs = _by_name(self.backbone, args, kwargs)
        run = self._through_late if isinstance(self.side, SherlSide) else self._beside
        output = run(inputs, taps)
        return output.to_tuple() if return_dict is False else output

    @torch.no_grad()
    def hidden_states(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The taps of these inputs, for `forward` to start from."""
        inputs = _by_name(self.backbone, args, kwargs)
        return self._run(inputs)[1]

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """While open, this is the backbone alone."""
        try:
            self.forward = self._frozen  # type: ignore[method-assign]
            yield
        finally:
            del self.forward

    @classmethod
    def from_pretrained(cls, backbone: nn.Module, folder: str | Path) -> SideModel:
        """Read it beside the backbone it was trained on; see `side.files.load_adapter`."""
        from pyext_plugins.side.files import load_adapter

        return cast(SideModel, load_adapter(backbone, folder))

    def _frozen(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.backbone(*args, **kwargs)

    @torch.no_grad()
    def _run(self, inputs: dict[str, Any]) -> tuple[Any, list[Tensor]]:
        """The backbone's output and the taps; nothing of it is kept for a backward pass."""
        with collect(self.layers, self.taps) as found:
            output = self.backbone(**inputs)
        return output, [found[number] for number in self.taps]

    def _beside(self, inputs: dict[str, Any], taps: Sequence[Tensor] | None) -> Any:
        """UniPT and LST: the backbone runs to its end, then the side network."""
        output = None
        if taps is None:
            output, taps = self._run(inputs)
        mask = _token_mask(inputs, taps[0])
        if isinstance(self.side, UniptSide) and self.side.guide is not None:
            if output is None:
                raise ValueError("taps: the preset clip_token needs the backbone's output too")
            return self._summary(inputs, taps, mask, output)
        return self._replaced(inputs, self.side(taps, mask), output)

    def _summary(
        self, inputs: dict[str, Any], taps: Sequence[Tensor], mask: Tensor | None, output: Any
    ) -> Any:
        """The preset clip_token: the summary alone is adapted."""
        name = summary_name(output)
        position = summary_position(self.backbone, inputs, len(taps[0]))
        y = self.side(taps, mask, getattr(output, cast(str, name)), position).squeeze(1)
        hidden = output.last_hidden_state
        output[name] = y
        if y.shape[-1] == hidden.shape[-1]:
            rows = torch.arange(len(hidden), device=hidden.device)
            output["last_hidden_state"] = hidden.index_put((rows, position), y.to(hidden.dtype))
        return output

    def _replaced(self, inputs: dict[str, Any], hidden: Tensor, output: Any) -> Any:
        """The output with these hidden states, and what the backbone's pooler makes of them."""
        if output is None:
            from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

            if getattr(self.backbone, "pooler", None) is None:
                return BaseModelOutput(last_hidden_state=hidden)
            pooled = pool(self.backbone, hidden, inputs)
            return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)
        output["last_hidden_state"] = hidden
        if summary_name(output) == "pooler_output":
            output["pooler_output"] = pool(self.backbone, hidden, inputs)
        return output

    def _through_late(self, inputs: dict[str, Any], taps: Sequence[Tensor] | None) -> Any:
        """SHERL: the last block runs on what the side network makes of the taps before it.

        No parameter of the backbone and no input requires a gradient, so that autograd keeps
        nothing until the last block, and from there what a gradient to its input needs.
        """
        layers = self.layers
        late = layers[-1]
        with ExitStack() as stack:
            if taps is None:
                found = stack.enter_context(collect(layers, self.taps))

                def replace(hidden: Tensor) -> Tensor:
                    return cast(
                        Tensor,
                        self.side([found[number] for number in self.taps], hidden.detach()),
                    )
            else:
                given = list(taps)
                stack.enter_context(last_block_alone(layers))

                def replace(hidden: Tensor) -> Tensor:
                    return cast(Tensor, self.side(given, given[-1]))

            stack.enter_context(replace_input(late, replace))
            output = self.backbone(**inputs)
        if torch.is_grad_enabled() and not output.last_hidden_state.requires_grad:
            raise RuntimeError("the late layer output does not require grad; check hooks")
        return output


def attach(model: nn.Module, config: SideConfig) -> nn.Module:
    """Put a side network beside the encoder inside a model with a head, which stays trainable.

    Args:
        model: a transformers model. It is changed in place where it has a head, whose encoder is
            what ``model.base_model`` names; otherwise wrapped.
        config: which method, and how. The preset clip_token adapts what the projection of a CLIP
            tower gives, and wraps the model whole.

    Returns:
        The model.
    """
    base = getattr(model, "base_model", model)
    whole = isinstance(config, UniptConfig) and config.preset == "clip_token"
    if base is model or whole:
        return SideModel(model, config)
    setattr(model, cast(str, model.base_model_prefix), SideModel(base, config))
    return model


def tap_numbers(config: SideConfig, layers: int) -> tuple[int, ...]:
    """Which hidden states the method reads of a backbone of so many blocks.

    Raises:
        ValueError: the config asks for one that is not there, or not for the one that guides.
    """
    last = layers - 1 if isinstance(config, SherlConfig) else layers
    if config.taps is None:
        return tuple(range(last + 1))
    if not config.taps or not 0 <= config.taps[0] <= config.taps[-1] <= last:
        raise ValueError(f"taps: expected numbers from 0 to {last}, got {list(config.taps)}")
    if isinstance(config, SherlConfig) and config.taps[-1] != last:
        raise ValueError(
            f"taps: the last must be {last}, the input of the late layer, got {config.taps[-1]}"
        )
    return config.taps


def hidden_size(backbone: nn.Module) -> int:
    """Channels of a transformers model's hidden states."""
    return cast(int, cast(Any, backbone).config.hidden_size)


def make_side(
    backbone: nn.Module, layers: nn.ModuleList, config: SideConfig, taps: int
) -> nn.Module:
    """The side network of a config, in float32.

    Raises:
        ValueError: the config does not fit the backbone.
    """
    hidden = hidden_size(backbone)
    width = hidden // config.reduction
    if width < 1:
        raise ValueError(f"reduction: expected at most {hidden}, got {config.reduction}")
    widths = [hidden] * taps
    if isinstance(config, SherlConfig):
        return SherlSide(widths, width, hidden, config.down == "gated")
    token = isinstance(config, UniptConfig) and config.preset == "clip_token"
    projected = hasattr(backbone, "text_projection") or hasattr(backbone, "visual_projection")
    if projected and not token:
        raise ValueError(
            f"{config.method}: {type(backbone).__name__} projects its summary after its blocks; "
            "wrap the tower inside it (`attach` does), or take the preset clip_token"
        )
    if is_causal(layers) and not token:
        raise ValueError(
            f"{config.method} is not causal: its tokens see later ones, those of "
            f"{type(backbone).__name__} do not; sherl merges inside a token"
        )
    if isinstance(config, LadderConfig):
        return LadderSide(widths, width, hidden, config.heads)
    assert isinstance(config, UniptConfig)
    if not token:
        return UniptSide(widths, width, hidden, config.preset)
    guide = cast(Any, backbone).config.projection_dim if projected else hidden
    return UniptSide(widths, width, guide, config.preset, guide)


def _by_name(backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by the names that the backbone's forward gives them."""
    names = [name for name in inspect.signature(backbone.forward).parameters if name != "kwargs"]
    return {**dict(zip(names, args, strict=False)), **kwargs, "return_dict": True}


def _token_mask(inputs: dict[str, Any], tap: Tensor) -> Tensor | None:
    """[B, N] bool, True where a token counts; None where all do, or the tokens are others."""
    mask = inputs.get("attention_mask")
    if mask is None or mask.shape != tap.shape[:2]:
        return None
    return cast(Tensor, mask.bool())


@contextmanager
def last_block_alone(layers: nn.ModuleList) -> Iterator[None]:
    """While open, a backbone runs its last block on whatever the first would have received.

    Raises:
        NotImplementedError: the last block needs more than that.
    """
    if any("relative_attention_bias" in name for name, _ in layers[0].named_parameters()):
        raise NotImplementedError(
            "taps: the last block of this backbone needs what the first computes; run it whole"
        )
    before, late = layers._modules.copy(), layers[-1]
    layers._modules.clear()
    layers._modules["0"] = late
    try:
        yield
    finally:
        layers._modules.clear()
        layers._modules.update(before)
