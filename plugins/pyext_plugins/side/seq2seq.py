"""SHERL beside an encoder-decoder, as for T5: step 8 of the method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyext_plugins.side.base import Beside
from pyext_plugins.side.config import SherlConfig
from pyext_plugins.side.model import hidden_size
from pyext_plugins.side.sherl import SherlSide
from pyext_plugins.side.taps import collect

NORM_EPS = 1e-6
# Where T5's blocks take what the encoder gives, where it is not given by name.
MEMORY_PLACE = 3


class Seq2SeqSides(nn.Module):
    """The side networks of encoder and decoder, and a norm for what each gives."""

    def __init__(self, taps: tuple[int, int], width: int, hidden: int, gated: bool) -> None:
        super().__init__()
        encoder, decoder = ([hidden] * count for count in taps)
        self.encoder = SherlSide(encoder, width, hidden, gated, late=False)
        self.decoder = SherlSide(decoder, width, hidden, gated)
        self.encoder_norm = nn.RMSNorm(hidden, eps=NORM_EPS)
        self.decoder_norm = nn.RMSNorm(hidden, eps=NORM_EPS)


class SherlSeq2Seq(Beside):
    """A frozen encoder-decoder of transformers, adapted in the last block of its decoder alone.

    The encoder's taps, its last block's included, are merged, and added to what it gives: that is
    what the last decoder block attends to, while the others attend to the frozen encoder's output.
    That block runs on the merge of the decoder's taps before it. Nothing sees later tokens, so the
    model generates, with or without a cache.

    Args:
        backbone: T5 or the like: ``encoder.block`` and ``decoder.block``. It is frozen in place.
        config: its ``down`` is "gated" in the authors' code; ``taps`` must be None, which is all.

    Raises:
        ValueError: the config does not fit the backbone.
    """

    def __init__(self, backbone: nn.Module, config: SherlConfig) -> None:
        super().__init__(backbone, config)
        if config.taps is not None:
            raise ValueError("taps: expected None for an encoder-decoder, which reads all")
        hidden = hidden_size(backbone)
        width = hidden // config.reduction
        if width < 1:
            raise ValueError(f"reduction: expected at most {hidden}, got {config.reduction}")
        counts = len(self.encoder_layers) + 1, len(self.decoder_layers)
        self.side = Seq2SeqSides(counts, width, hidden, config.down == "gated")
        self.train(self.training)

    @property
    def encoder_layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.backbone.get_submodule("encoder.block"))

    @property
    def decoder_layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.backbone.get_submodule("decoder.block"))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Take what the backbone takes and return what it returns, adapted."""
        with self._adapted():
            return self.backbone(*args, **kwargs)

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The backbone's ``generate``, adapted."""
        with self._adapted():
            return cast(Any, self.backbone).generate(*args, **kwargs)

    @contextmanager
    def _adapted(self) -> Iterator[None]:
        """While open, runs of the backbone are adapted."""
        encoder, decoder = self.encoder_layers, self.decoder_layers
        sides = cast(Seq2SeqSides, self.side)
        memory: list[Tensor] = []
        with ExitStack() as stack:
            low = stack.enter_context(collect(encoder, range(len(encoder) + 1)))
            high = stack.enter_context(collect(decoder, range(len(decoder))))

            def after_encoder(module: nn.Module, args: Any, output: Any) -> None:
                merged = sides.encoder([low[k] for k in sorted(low)])
                memory[:] = [sides.encoder_norm(output[0] + merged)]

            def before_late(
                module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
            ) -> tuple[tuple[Any, ...], dict[str, Any]]:
                hidden = (args[0] if args else kwargs["hidden_states"]).detach()
                adapted = sides.decoder([high[k] for k in sorted(high)], hidden)
                new = {
                    "hidden_states": sides.decoder_norm(adapted),
                    "encoder_hidden_states": _for_beams(memory, len(hidden)),
                }
                rest = list(args)
                for place, name in ((0, "hidden_states"), (MEMORY_PLACE, "encoder_hidden_states")):
                    if len(rest) > place:
                        rest[place] = new.pop(name)
                return tuple(rest), {**kwargs, **new}

            whole = self.backbone.get_submodule("encoder")
            for handle in (
                whole.register_forward_hook(after_encoder),
                decoder[-1].register_forward_pre_hook(before_late, with_kwargs=True),
            ):
                stack.callback(handle.remove)
            yield


def _for_beams(memory: list[Tensor], batch: int) -> Tensor:
    """Each sample's memory as often as it has beams."""
    if not memory:
        raise ValueError("encoder_outputs: the encoder must run here, for its taps to be read")
    (found,) = memory
    return found if len(found) == batch else found.repeat_interleave(batch // len(found), 0)
