"""The iterative pattern: render all views, edit them together, fit the scene to them; again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyext.errors import UserError
from pyext.scene import Scene
from pyext_plugins.ranges import check_ranges
from pyext_plugins.vcedit.cameras import Cameras
from pyext_plugins.vcedit.consistency import ViewConsistency
from pyext_plugins.vcedit.fitting import SceneFit, check_images, render

# Takes the renders, in [0, 1], [V, H, W, 3]; returns them edited, the same shape.
Editor = Callable[[Tensor, ViewConsistency], Tensor]


@dataclass(frozen=True)
class Settings:
    """What an edit depends on besides scene, cameras and editor.

    Args:
        rounds: of rendering, editing and fitting.
        steps: of Adam per round.
        seed: of the order in which the fits take views.

    Raises:
        UserError: a number is outside its range.
    """

    rounds: int = 2
    steps: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {"rounds": (1, 100), "steps": (1, 100_000), "seed": (0, 2**62)}
        check_ranges(self, ranges)


class Edit:
    """An edit in progress; at any time `scene` is what it has come to.

    Args:
        scene: N Gaussians, is not changed.
        cameras: V views.
        editor: called once per round with the renders and a `ViewConsistency` of the scene.
        settings: how often and how long.
        editable: bool [N], which Gaussians the fits may change; all when None. VcEdit takes
            ``lift(masks, ..., rule="count-mean").values[:, 0] > 0.5`` of the region's masks.
    """

    def __init__(
        self,
        scene: Scene,
        cameras: Cameras,
        editor: Editor,
        settings: Settings,
        editable: Tensor | None = None,
    ) -> None:
        self.cameras, self.editor, self.settings = cameras, editor, settings
        self.round = 0
        self.guidance: Tensor | None = None  # the edited views of the last round, [V, H, W, 3]
        self.fit: SceneFit | None = None  # of the round under way
        self._scene, self._editable = scene, editable

    @property
    def scene(self) -> Scene:
        """The Gaussians as they are now."""
        return self._scene if self.fit is None else self.fit.scene

    @property
    def done(self) -> bool:
        return self.round == self.settings.rounds

    def run(
        self,
        on_step: Callable[[float | None], None] = lambda loss: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Go on until all rounds are done or somebody wants it to stop.

        Args:
            on_step: called with None before the editor, and with the loss after every step.
            should_stop: asked before every step and by the editor's `ViewConsistency`.

        Raises:
            UserError: the editor returned something else than V pictures, or no view sees
                anything.
            KeyboardInterrupt: `should_stop` said yes while the editor ran.
        """
        while not self.done and not should_stop():
            if self.fit is None:
                on_step(None)
                self._edit_views(should_stop)
            self._fit_scene(on_step, should_stop)

    def _edit_views(self, should_stop: Callable[[], bool]) -> None:
        with torch.no_grad():
            images = render(self._scene, self.cameras).clamp(0, 1)
        consistency = ViewConsistency(
            self._scene, self.cameras, round=self.round, should_stop=should_stop
        )
        edited = self.editor(images, consistency)
        if not isinstance(edited, Tensor):
            raise UserError(f"editor: expected to return a tensor, got {type(edited).__name__}")
        try:
            check_images(edited, self.cameras)
        except ValueError as error:
            raise UserError(f"editor: what it returned: {error}") from error
        self.guidance = edited.detach().to(images).clamp(0, 1)
        self.fit = SceneFit(
            self._scene,
            self.cameras,
            self.guidance,
            steps=self.settings.steps,
            seed=self.settings.seed + self.round,
            editable=self._editable,
        )

    def _fit_scene(
        self, on_step: Callable[[float | None], None], should_stop: Callable[[], bool]
    ) -> None:
        assert self.fit is not None
        while self.fit.step < self.fit.steps:
            if should_stop():
                return
            on_step(self.fit.advance())
        self._scene, self.fit = self.fit.scene, None
        self.round += 1
