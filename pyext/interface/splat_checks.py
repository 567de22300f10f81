"""What `rasterization` refuses, one clear error each."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from pyext.interface.splat_dialects import DIALECTS

_KNOWN: dict[str, tuple[str, ...]] = {
    "render_mode": ("RGB", "D", "ED", "RGB+D", "RGB+ED"),
    "rasterize_mode": ("classic", "antialiased"),
    "camera_model": ("pinhole", "ortho", "fisheye", "ftheta"),
    "compat": tuple(DIALECTS),
    "meta": ("full", "light"),
}
_ONLY: dict[str, tuple[Any, ...]] = {
    "tile_size": (16,),
    "distributed": (False,),
    "camera_model": ("pinhole", "ortho"),
    "with_ut": (False,),
    "with_eval3d": (False,),
    "radial_coeffs": (None,),
    "tangential_coeffs": (None,),
    "thin_prism_coeffs": (None,),
    "ftheta_coeffs": (None,),
    "rolling_shutter": (None,),
    "viewmats_rs": (None,),
}
SH_DEGREE_MAX = 4


def check_supported(**arguments: Any) -> None:
    """Refuse values outside gsplat's interface (ValueError), then those that are not there."""
    for name, value in arguments.items():
        known = _KNOWN.get(name)
        if known and value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        only = _ONLY.get(name)
        # Identity: a tensor compared by value gives a tensor.
        if only and not any(value is choice or (value == choice) is True for choice in only):
            choices = " and ".join(map(repr, only))
            verb = "is" if len(only) == 1 else "are"
            got = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise NotImplementedError(f"{name}: only {choices} {verb} supported, got {got}")


def check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Refuse another shape, device or dtype than those of ``like``, which is called means."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
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


def _check_colors(colors: Tensor, means: Tensor, cameras: int, sh_degree: int | None) -> None:
    batch, n = tuple(means.shape[:-2]), means.shape[-2]
    channels = colors.shape[-1] if colors.dim() else 0
    if channels < 1:
        raise ValueError(f"colors: expected at least one channel, got {list(colors.shape)}")
    if sh_degree is None:
        per_camera = colors.dim() == means.dim() + 1
        tail: tuple[int, ...] = (n, channels)
    else:
        if sh_degree not in range(SH_DEGREE_MAX + 1):
            raise ValueError(f"sh_degree: expected 0 to {SH_DEGREE_MAX}, got {sh_degree!r}")
        coefficients, needed = (
            colors.shape[-2] if colors.dim() > 1 else 0,
            (sh_degree + 1) ** 2,
        )
        if coefficients < needed:
            raise ValueError(
                f"colors: degree {sh_degree} needs {needed} coefficients [..., N, K, D], "
                f"got {list(colors.shape)}"
            )
        per_camera = colors.dim() == means.dim() + 2
        tail = (n, coefficients, channels)
        if colors.dim() == 3:
            batch = ()
    check_tensor("colors", colors, (*batch, *((cameras,) if per_camera else ()), *tail), means)


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
    sh_degree: int | None,
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
    check_tensor("viewmats", viewmats, (*batch, c, 4, 4), means)
    check_tensor("Ks", Ks, (*batch, c, 3, 3), means)
    check_tensor("opacities", opacities, (*batch, n), means)
    if covars is not None:
        check_tensor("covars", covars, (*batch, n, 3, 3), means)
    elif quats is None or scales is None:
        missing = "quats" if quats is None else "scales"
        raise ValueError(f"{missing}: needed when covars is not given, got None")
    else:
        check_tensor("quats", quats, (*batch, n, 4), means)
        check_tensor("scales", scales, (*batch, n, 3), means)
    _check_colors(colors, means, c, sh_degree)
    if backgrounds is not None:
        check_tensor("backgrounds", backgrounds, (*batch, c, colors.shape[-1]), means)


def check_gradients(means: Tensor, sparse_grad: bool, packed: bool) -> None:
    """Refuse sparse gradients where gsplat has none."""
    if sparse_grad and not packed:
        raise ValueError("sparse_grad: needs packed=True, got packed=False")
    if sparse_grad and means.dim() > 2:
        raise ValueError(
            f"sparse_grad: expected means [N, 3] without batch dimensions, got {list(means.shape)}"
        )


def _check_finite(name: str, tensor: Tensor) -> None:
    wrong = (~torch.isfinite(tensor)).nonzero()
    if len(wrong):
        raise ValueError(
            f"{name}: {len(wrong)} values are not finite, the first at {wrong[0].tolist()}"
        )


def check_values(
    means: Tensor,
    quats: Tensor | None,
    scales: Tensor | None,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    covars: Tensor | None,
    check_finite: bool,
) -> None:
    """Warn of matrices that are no camera's; with ``check_finite``, check every input's values.

    On a GPU, and while torch compiles, nothing is read unless ``check_finite`` asks for it.
    """
    if check_finite:
        tensors = {
            "means": means, "quats": quats, "scales": scales, "opacities": opacities,
            "colors": colors, "viewmats": viewmats, "Ks": Ks, "covars": covars,
        }  # fmt: skip
        for name, tensor in tensors.items():
            if tensor is not None:
                _check_finite(name, tensor)
        if bool(((opacities < 0) | (opacities > 1)).any()):
            lowest, highest = opacities.aminmax()
            raise ValueError(
                f"opacities: expected values in [0, 1], got {lowest:.6g} to {highest:.6g}"
            )
        if covars is None and scales is not None and bool((scales <= 0).any()):
            raise ValueError(f"scales: expected positive values, got {scales.min():.6g}")
    if check_finite or (viewmats.device.type == "cpu" and not torch.compiler.is_compiling()):
        last = viewmats.detach()[..., 3, :]
        if not torch.allclose(last, last.new_tensor([0, 0, 0, 1]).expand_as(last), atol=1e-4):
            warnings.warn(
                "viewmats: the bottom row of a world-to-camera matrix is 0 0 0 1, got "
                f"{last.reshape(-1, 4)[0].tolist()}; only the top three rows are used",
                stacklevel=4,
            )
