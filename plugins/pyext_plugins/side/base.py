"""What all wrapped backbones have in common."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from typing_extensions import Self

from pyext_plugins.side.config import SideConfig


class Beside(nn.Module):
    """A frozen backbone with a side network.

    Args:
        backbone: is frozen in place, and stays in evaluation mode unless the config says otherwise.
        config: which method, and how.
    """

    side: nn.Module

    def __init__(self, backbone: nn.Module, config: SideConfig) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.side_config = config

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.backbone.train(mode and self.side_config.backbone_dropout)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the side network; see `side.files.save_adapter`."""
        from pyext_plugins.side.files import save_adapter

        save_adapter(self, folder)

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """How many parameters are trained, and how many there are."""
        sizes = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)

    def print_trainable_parameters(self) -> None:
        trained, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trained:,} || all params: {total:,} || {trained / total:.2%}")
