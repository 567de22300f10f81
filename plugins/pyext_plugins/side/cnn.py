"""A frozen convolutional network with a side network beside its stages.

names = ("layer1", "layer2", "layer3", "layer4")                      # torchvision, timm
model = StageModel(resnet, names, UniptConfig(), image_size=(224, 224))
names = ("layer1", "layer2", "layer3", "layer4.1")                    # the late block: layer4.2
model = StageModel(resnet, names, SherlConfig(), late="layer4.2", image_size=(224, 224))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyext_plugins.side.base import Beside
from pyext_plugins.side.cnn_sides import SherlStages, UniptStages
from pyext_plugins.side.config import SherlConfig, SideConfig, UniptConfig
from pyext_plugins.side.taps import replace_input


class StageModel(Beside):
    """A frozen network of pictures and the side network that adapts its stages.

    Args:
        backbone: takes pictures [B, 3, H, W] first; frozen in place, its BatchNorm in evaluation.
        stages: names of the modules whose outputs are the stages' maps, the guide's last.
        config: `UniptConfig` or `SherlConfig`; its reduction is of the last stage's channels. Its
            preset is not looked at: "cnn_stage" is what this class is.
        image_size: H, W of pictures that are run once, to see how large the maps are.
        late: name of the block that SHERL runs on the adapted map; None for UniPT.

    Raises:
        ValueError: a name is not there, or the maps do not fit.
    """

    def __init__(
        self,
        backbone: nn.Module,
        stages: Sequence[str],
        config: SideConfig,
        image_size: tuple[int, int],
        late: str | None = None,
    ) -> None:
        super().__init__(backbone, config)
        self.stages, self.late = tuple(stages), late
        for name in (*stages, *([] if late is None else [late])):
            try:
                backbone.get_submodule(name)
            except AttributeError as error:
                raise ValueError(f"stages: {type(backbone).__name__} has no {name!r}") from error
        first = next(backbone.parameters())
        pictures = torch.zeros(1, 3, *image_size, device=first.device, dtype=first.dtype)
        channels = [image.shape[1] for image in self.maps(pictures)]
        width = channels[-1] // config.reduction
        if isinstance(config, UniptConfig):
            self.side: nn.Module = UniptStages(channels, width, channels[-1])
        elif isinstance(config, SherlConfig):
            if late is None:
                raise ValueError("late: expected the name of the late block, got none")
            self.side = SherlStages(channels, width)
        else:
            raise ValueError(f"config: expected unipt or sherl, got {config.method}")
        self.train(self.training)

    @torch.no_grad()
    def maps(self, pictures: Tensor, **more: Any) -> list[Tensor]:
        """The stages' maps of pictures [B, 3, H, W]."""
        with self._collected() as found:
            self.backbone(pictures, **more)
        return [found[name] for name in self.stages]

    def forward(
        self,
        pixel_values: Tensor | None = None,
        maps: Sequence[Tensor] | None = None,
        **more: Any,
    ) -> Any:
        """What the backbone returns, adapted.

        With UniPT ``last_hidden_state`` [B, C, h, w] of the side network, and ``pooler_output``
        [B, C, 1, 1], its mean; with SHERL the backbone's own output, its late block run on the
        adapted map.

        Args:
            pixel_values: pictures [B, 3, H, W].
            maps: what `maps` gave for them before; UniPT alone can start from there.

        Raises:
            ValueError: neither is given, or maps where pictures are needed; or a grid is no
                multiple of the last one.
        """
        if self.late is None:
            from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention

            if maps is None:
                maps = self.maps(self._pictures(pixel_values), **more)
            grid = maps[-1].shape[2:]
            y = self.side(maps).transpose(1, 2).unflatten(2, grid)
            return BaseModelOutputWithPoolingAndNoAttention(
                last_hidden_state=y, pooler_output=y.mean((2, 3), keepdim=True)
            )
        if maps is not None:
            raise ValueError("maps: expected None with a late block, which needs the backbone run")
        pictures = self._pictures(pixel_values)
        late = self.backbone.get_submodule(self.late)
        with self._collected() as found:
            adapt = replace_input(late, lambda _: self.side([found[name] for name in self.stages]))
            with adapt:
                return self.backbone(pictures, **more)

    @staticmethod
    def _pictures(pixel_values: Tensor | None) -> Tensor:
        if pixel_values is None:
            raise ValueError("pixel_values: expected pictures, got none")
        return pixel_values

    @contextmanager
    def _collected(self) -> Iterator[dict[str, Tensor]]:
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                found[name] = (output[0] if isinstance(output, tuple) else output).detach()

            return hook

        handles = [
            self.backbone.get_submodule(name).register_forward_hook(keep(name))
            for name in self.stages
        ]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()
