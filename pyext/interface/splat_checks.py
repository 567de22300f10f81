"""What `rasterization` refuses, one clear error each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ONLY: dict[str, Any] = {
    "sh_degree": None,
    "tile_size": 16,
    "render_mode": "RGB",
    "sparse_grad": False,
    "absgrad": False,
    "rasterize_mode": "classic",
    "distributed": False,
    "camera_model": "pinhole",
    "with_ut": False,
    "with_eval3d": False,
}
_KNOWN: dict[str, tuple[str, ...]] = {
    "render_mode": ("RGB", "D", "ED", "RGB+D", "RGB+ED"),
    "rasterize_mode": ("classic", "antialiased"),
    "camera_model": ("pinhole", "ortho", "fisheye", "ftheta"),
}


def check_supported(**arguments: Any) -> None:
    """Refuse values outside gsplat's interface (ValueError), then those not there yet."""
    for name, value in arguments.items():
        known = _KNOWN.get(name)
        if known and value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        only = _ONLY.get(name)
        if value != only:
            raise NotImplementedError(f"{name}: only {only!r} is supported, got {value!r}")


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} like means, got {tensor.device}")
    if tensor.dtype != like.dtype:
        raise TypeError(f"{name}: expected dtype {like.dtype} like means, got {tensor.dtype}")


def _check_sizes(width: int, height: int, near_plane: float, far_plane: float) -> None:
    for name, size in (("width", width), ("height", height)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1 pixel, got {size}")
    if not near_plane > 0:
        raise ValueError(f"near_plane: expected a positive distance, got {near_plane}")
    if not far_plane > near_plane:
        raise ValueError(f"far_plane: expected more than near_plane {near_plane}, got {far_plane}")


def check_arguments(
    means: Tensor,
    quats: Tensor | None,
    scales: Tensor | None,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float,
    far_plane: float,
    backgrounds: Tensor | None,
    covars: Tensor | None,
) -> None:
    """Check shapes, dtypes, devices and sizes of `rasterization`'s arguments."""
    _check_sizes(width, height, near_plane, far_plane)
    if means.dim() < 2 or means.shape[-1] != 3:
        raise ValueError(f"means: expected shape [..., N, 3], got {list(means.shape)}")
    if means.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"means: expected dtype float32 or float64, got {means.dtype}")
    if viewmats.dim() < 3:
        raise ValueError(f"viewmats: expected shape [..., C, 4, 4], got {list(viewmats.shape)}")
    batch, n, c = tuple(means.shape[:-2]), means.shape[-2], viewmats.shape[-3]
    _check("viewmats", viewmats, (*batch, c, 4, 4), means)
    _check("Ks", Ks, (*batch, c, 3, 3), means)
    if Ks.requires_grad:
        raise NotImplementedError("Ks: gradients to intrinsics are not supported; detach it")
    _check("opacities", opacities, (*batch, n), means)
    if covars is not None:
        _check("covars", covars, (*batch, n, 3, 3), means)
    elif quats is None or scales is None:
        missing = "quats" if quats is None else "scales"
        raise ValueError(f"{missing}: needed when covars is not given, got None")
    else:
        _check("quats", quats, (*batch, n, 4), means)
        _check("scales", scales, (*batch, n, 3), means)
    channels = colors.shape[-1] if colors.dim() else 0
    if channels < 1:
        raise ValueError(f"colors: expected at least one channel, got {list(colors.shape)}")
    per_camera = colors.dim() == means.dim() + 1
    _check("colors", colors, (*batch, *((c,) if per_camera else ()), n, channels), means)
    if backgrounds is not None:
        _check("backgrounds", backgrounds, (*batch, c, channels), means)
