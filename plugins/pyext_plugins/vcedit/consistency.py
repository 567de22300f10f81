"""Where the scene enters an editor's sampling loop: three calls, each at its own steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyext.ops.splat import Cells, unproject_cells
from pyext.scene import Scene
from pyext_plugins.vcedit.cameras import Cameras
from pyext_plugins.vcedit.fitting import check_images, fit_colors, render
from pyext_plugins.vcedit.lifting import (
    UNPROJECT,
    Rule,
    check_finite,
    check_rule,
    check_unchanged,
    check_views,
    tile_lists,
)

Predictor = Callable[[Scene, Cameras, Tensor], Scene]


class ViewConsistency:
    """Makes what an editor has of V views agree, by way of one scene.

    Make one per call of the editor: the scene is projected once, and one pair of sparse matrices
    per map size serves all layers, heads, tokens and steps. Steps count from 1, and a call at a
    step that is no multiple of its period returns what it was given. The defaults are those of
    VcEdit's published code, for 15 sampling steps.

    Args:
        scene: N Gaussians.
        cameras: V views, in the order of the editor's batch.
        rule: of lifting; see `pyext_plugins.vcedit.lifting`.
        attn_ctrl_steps: period of `on_attention` (the cross-attention consistency module).
        pred_ctrl_steps: period of `on_prediction` (the editing consistency module).
        blend_steps: period of `on_blend`.
        max_map_size: larger attention maps are left as they are.
        tokens: how many, from the first, are made consistent; all when None. VcEdit takes the
            tokens of the longer prompt, its start and end included.
        predictor: fits a copy of the scene to pictures, in `on_prediction`: `fit_colors`, or
            `fit_scene` as VcEdit does.
        round: which call of the editor this is, from 0. From the second on, VcEdit takes the
            target prompt for the source prompt too.
        should_stop: asked in every call; where it says yes, KeyboardInterrupt is raised.

    Raises:
        ValueError: a period or size is less than 1, or no Gaussian is seen by any camera.

    Warns:
        UserWarning: there is only one view.
    """

    def __init__(
        self,
        scene: Scene,
        cameras: Cameras,
        *,
        rule: Rule = "mean",
        attn_ctrl_steps: int = 7,
        pred_ctrl_steps: int = 5,
        blend_steps: int = 1,
        max_map_size: int = 32,
        tokens: int | None = None,
        predictor: Predictor = fit_colors,
        round: int = 0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        check_rule(rule)
        for name, value in (
            ("attn_ctrl_steps", attn_ctrl_steps),
            ("pred_ctrl_steps", pred_ctrl_steps),
            ("blend_steps", blend_steps),
            ("max_map_size", max_map_size),
            ("tokens", tokens),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        check_views(len(cameras))
        self.scene, self.cameras, self.round = scene, cameras, round
        self._attn_ctrl_steps, self._pred_ctrl_steps = attn_ctrl_steps, pred_ctrl_steps
        self._blend_steps, self._max_map_size, self._tokens = blend_steps, max_map_size, tokens
        self._rule, self._predictor, self._should_stop = rule, predictor, should_stop
        self._gaussians = len(scene)
        self._meta = tile_lists(cameras, scene)
        self._cells: dict[tuple[int, int], Cells] = {}

    def on_attention(self, step: int, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Lift cross-attention maps, render them back, clip them to [0, 1].

        Rows are not renormalised, as in VcEdit: they no longer sum to exactly one.

        Args:
            step: from 1.
            maps: by module name, [V, ..., q, tokens]: any dimensions in between (branches, heads),
                q = h w positions in row-major order, h : w as the images' sides.

        Returns:
            The same names, shapes and dtypes. Maps of more than ``max_map_size``^2 positions, and
            tokens beyond ``tokens``, are those given.

        Raises:
            ValueError: a map has another number of views, positions of no such h and w, or holds
                not-a-number; or the scene changed since this object was made.
        """
        self._stop_if_wanted()
        if step % self._attn_ctrl_steps:
            return dict(maps)
        return {name: self._attention_map(name, value) for name, value in maps.items()}

    def on_prediction(self, step: int, images: Tensor) -> Tensor:
        """Fit a copy of the scene to the pictures predicted so far, and render it.

        Args:
            step: from 1.
            images: clipped to [0, 1] here, [V, H, W, 3].

        Returns:
            Pictures of one scene, in [0, 1], [V, H, W, 3]; the scene itself is not changed.

        Raises:
            ValueError: the pictures do not fit the cameras or hold not-a-number, or the scene
                changed.
        """
        self._stop_if_wanted()
        if step % self._pred_ctrl_steps:
            return images
        check_unchanged(self._gaussians, self.scene)
        check_images(images, self.cameras)
        # Pipelines run in inference mode, whose tensors no fit can go through.
        with torch.inference_mode(False):
            targets = images.float().clamp(0, 1).clone()
            copy = self._predictor(self.scene, self.cameras, targets)
        with torch.no_grad():
            return render(copy, self.cameras).clamp(0, 1).to(images.dtype)

    def on_blend(self, step: int, maps: Tensor) -> Tensor:
        """Lift maps that say where which branch is taken, and render them back.

        Args:
            step: from 1.
            maps: [V, h, w, D]; see `pyext_plugins.vcedit.words`.

        Returns:
            [V, h, w, D], before any threshold.

        Raises:
            ValueError: another number of views, not-a-number, or the scene changed.
        """
        self._stop_if_wanted()
        return maps if step % self._blend_steps else self._through_scene("maps", maps)

    def _attention_map(self, name: str, maps: Tensor) -> Tensor:
        if maps.dim() < 3:
            raise ValueError(f"{name}: expected [V, ..., q, tokens], got {list(maps.shape)}")
        q = maps.shape[-2]
        if q > self._max_map_size**2:
            return maps
        height, width = self._sides(name, q)
        # [V, ..., q, tokens] -> [V, h, w, channels] and back.
        chosen = maps[..., : self._tokens].float().movedim(-2, 1)
        planes = chosen.reshape(len(maps), height, width, -1)
        planes = self._through_scene(name, planes).clamp(0, 1)
        again = planes.reshape(chosen.shape).movedim(1, -2).to(maps.dtype)
        rest = maps[..., self._tokens :] if self._tokens else maps[..., :0]
        return torch.cat([again, rest], -1)

    def _sides(self, name: str, q: int) -> tuple[int, int]:
        """Height and width of a map of q positions."""
        height = max(round((q * self.cameras.height / self.cameras.width) ** 0.5), 1)
        if q % height:
            raise ValueError(
                f"{name}: {q} positions are no map of the shape of {self.cameras.width} x "
                f"{self.cameras.height} images"
            )
        return height, q // height

    def _through_scene(self, name: str, maps: Tensor) -> Tensor:
        if maps.dim() != 4 or len(maps) != len(self.cameras):
            raise ValueError(
                f"{name}: expected maps of {len(self.cameras)} views, got {list(maps.shape)}"
            )
        check_unchanged(self._gaussians, self.scene)
        check_finite(name, maps)
        size = (maps.shape[1], maps.shape[2])
        if size not in self._cells:
            self._cells[size] = unproject_cells(self._meta, *size, **UNPROJECT[self._rule])
        cells = self._cells[size]
        return cells.render(cells.lift(maps))

    def _stop_if_wanted(self) -> None:
        if self._should_stop():
            raise KeyboardInterrupt
