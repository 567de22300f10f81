"""What `rasterization` says about a render: `meta`, in gsplat's layouts."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyext.interface.splat_lists import TILE, TileLists, tiles_along
from pyext.interface.splat_stages import Shape


class Footprints(NamedTuple):
    """What the compositor of one render was given: all that goes from pixels back to Gaussians.

    I images of N Gaussians. Invisible Gaussians are in no list.
    """

    views: tuple[int, ...]  # (..., C), whose product is I
    means2d: Tensor  # [I, N, 2] pixels
    conics: Tensor  # [I, N, 3]
    opacities: Tensor  # [I, N], the effective ones
    lists: TileLists
    width: int
    height: int
    alpha_max: float

    @property
    def gaussians(self) -> int:
        return self.means2d.shape[1]

    @property
    def image_shape(self) -> tuple[int, ...]:
        return (*self.views, self.height, self.width)

    @property
    def geometry(self) -> tuple[Tensor, Tensor, Tensor]:
        """The tensors that say where a Gaussian is seen, as the ops take them first."""
        return self.means2d, self.conics, self.opacities

    @property
    def trailing(self) -> tuple[Any, ...]:
        """Lists and constants, as the ops take them after their own tensors."""
        return (*self.lists, self.width, self.height, self.alpha_max)


class Meta(dict[str, Any]):
    """A dict that computes gsplat's rarely read entries when they are asked for.

    These are ``tiles_per_gauss``, ``flatten_ids`` and ``isect_ids``; the last alone would take
    more memory than the lists the render works on.
    """

    def __init__(self, entries: dict[str, Any], visible: Tensor | None, depths: Tensor) -> None:
        super().__init__(entries)
        self._visible = visible  # flat ids of the packed layout
        self._depths = depths  # by flat id

    def __missing__(self, key: str) -> Any:
        compute = {
            "tiles_per_gauss": self._tiles_per_gaussian,
            "flatten_ids": self._flatten_ids,
            "isect_ids": self._isect_ids,
        }.get(key)
        if compute is None:
            raise KeyError(key)
        self[key] = compute()
        return self[key]

    def _tiles_per_gaussian(self) -> Tensor:
        counts = self["footprints"].lists.tiles_per_gaussian()
        if self._visible is not None:
            return counts[self._visible]
        return counts.reshape(self["radii"].shape[:-1])

    def _flatten_ids(self) -> Tensor:
        ids = self["footprints"].lists.tile_ids
        if self._visible is None:
            return ids
        place = ids.new_zeros(self._depths.numel())
        place[self._visible] = torch.arange(
            self._visible.numel(), dtype=ids.dtype, device=ids.device
        )
        return place[ids.long()]

    def _isect_ids(self) -> Tensor:
        images = self["n_batches"] * self["n_cameras"]
        return self["footprints"].lists.keys(self._depths.float(), images)


@torch.library.custom_op("pyext::splat_visible", mutates_args=())
def visible_ids(radii: Tensor) -> Tensor:
    """Flat ids of what `project` did not cull, ascending: radii [..., 2] int32 -> [V] int64."""
    return (radii > 0).all(-1).flatten().nonzero().squeeze(-1)


@visible_ids.register_fake
def _(radii: Tensor) -> Tensor:
    return radii.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def keep_absgrad(
    means2d: Tensor, images: int, gaussians: int, visible: Tensor | slice | None
) -> Tensor:
    """The compositor's input whose gradient is gsplat's ``absgrad``, put on `means2d` by a hook.

    ``visible`` says which flat ids the rows of `means2d` are; None: all.
    """
    absolute = means2d.new_zeros((images, gaussians, 2), requires_grad=True)
    owner = weakref.ref(means2d)  # a strong one would tie the graph to itself

    def keep(gradient: Tensor) -> None:
        target = owner()
        if target is not None:
            flat = gradient.reshape(-1, 2)
            packed = flat if visible is None else flat[visible]
            target.absgrad = packed.reshape(target.shape)  # type: ignore[attr-defined]

    absolute.register_hook(keep)
    return absolute


def layout(values: dict[str, Tensor], visible: Tensor | None, shape: Shape) -> dict[str, Any]:
    """Values [B, C, N(, k)] in the layout of ``meta``, and the ids that say whose each row is."""
    if visible is None:
        dims = (*shape.batch, shape.C, shape.N)
        dense = {name: value.reshape(*dims, *value.shape[3:]) for name, value in values.items()}
        return dense | dict.fromkeys(("batch_ids", "camera_ids", "gaussian_ids"))
    rows = {name: value.flatten(0, 2).index_select(0, visible) for name, value in values.items()}
    image = visible // max(shape.N, 1)
    return rows | {
        "batch_ids": image // max(shape.C, 1),
        "camera_ids": image % max(shape.C, 1),
        "gaussian_ids": visible % max(shape.N, 1),
    }


def sizes(width: int, height: int, batches: int, cameras: int) -> dict[str, Any]:
    """The entries that hold no tensor."""
    tiles_x, tiles_y = tiles_along(width, height)
    return {
        "tile_width": tiles_x,
        "tile_height": tiles_y,
        "tile_size": TILE,
        "width": width,
        "height": height,
        "n_batches": batches,
        "n_cameras": cameras,
    }
