"""Each bad input gives one error that names the argument, what it got and what was wanted."""

import math
import re

import pytest
import torch

from pyext.ops.splat import rasterization
from tests.ops.splat_ops import INTEGERS, NAMES, arguments_of, call
from tests.ops.splat_scenes import random_scene, run


def scene_with(**changes):
    return random_scene(5, 20, 18, cameras=2) | changes


BAD = {
    "means of no width": ({"means": torch.zeros(5, 2)}, ValueError,
                          "means: expected shape [..., N, 3], got [5, 2]"),
    "means of one dimension": ({"means": torch.zeros(3)}, ValueError,
                               "means: expected shape [..., N, 3], got [3]"),
    "half means": ({"means": torch.zeros(5, 3).half()}, TypeError,
                   "means: expected dtype float32 or float64, got torch.float16"),
    "integer means": ({"means": torch.zeros(5, 3).long()}, TypeError,
                      "means: expected dtype float32 or float64, got torch.int64"),
    "quats": ({"quats": torch.zeros(5, 3)}, ValueError,
              "quats: expected shape [5, 4], got [5, 3]"),
    "no quats": ({"quats": None}, ValueError,
                 "quats: needed when covars is not given, got None"),
    "scales": ({"scales": torch.zeros(4, 3)}, ValueError,
               "scales: expected shape [5, 3], got [4, 3]"),
    "no scales": ({"scales": None}, ValueError,
                  "scales: needed when covars is not given, got None"),
    "covars": ({"covars": torch.zeros(5, 6)}, ValueError,
               "covars: expected shape [5, 3, 3], got [5, 6]"),
    "opacities": ({"opacities": torch.zeros(5, 1)}, ValueError,
                  "opacities: expected shape [5], got [5, 1]"),
    "opacities in double": ({"opacities": torch.zeros(5).double()}, TypeError,
                            "opacities: expected dtype torch.float32 like means, "
                            "got torch.float64"),
    "colors": ({"colors": torch.zeros(4, 3)}, ValueError,
               "colors: expected shape [5, 3], got [4, 3]"),
    "colors per camera": ({"colors": torch.zeros(3, 5, 3)}, ValueError,
                          "colors: expected shape [2, 5, 3], got [3, 5, 3]"),
    "colors without channels": ({"colors": torch.zeros(5, 0)}, ValueError,
                                "colors: expected at least one channel, got [5, 0]"),
    "scalar colors": ({"colors": torch.tensor(1.0)}, ValueError,
                      "colors: expected at least one channel, got []"),
    "viewmats without cameras": ({"viewmats": torch.eye(4)}, ValueError,
                                 "viewmats: expected shape [..., C, 4, 4], got [4, 4]"),
    "viewmats": ({"viewmats": torch.zeros(2, 3, 4)}, ValueError,
                 "viewmats: expected shape [2, 4, 4], got [2, 3, 4]"),
    "viewmats of another batch": ({"viewmats": torch.zeros(7, 2, 4, 4)}, ValueError,
                                  "viewmats: expected shape [2, 4, 4], got [7, 2, 4, 4]"),
    "Ks": ({"Ks": torch.zeros(1, 3, 3)}, ValueError,
           "Ks: expected shape [2, 3, 3], got [1, 3, 3]"),
    "backgrounds": ({"backgrounds": torch.zeros(3)}, ValueError,
                    "backgrounds: expected shape [2, 3], got [3]"),
    "another device": ({"colors": torch.zeros(5, 3, device="meta")}, ValueError,
                       "colors: expected device cpu like means, got meta"),
    "width": ({"width": 0}, ValueError, "width: expected at least 1 pixel, got 0"),
    "height": ({"height": -3}, ValueError, "height: expected at least 1 pixel, got -3"),
    "too wide": ({"width": 1 << 21}, ValueError,
                 "width: expected 1 to 1048576 pixels, got 2097152"),
    "near_plane": ({"near_plane": 0.0}, ValueError,
                   "near_plane: expected a positive distance, got 0.0"),
    "near_plane not a number": ({"near_plane": math.nan}, ValueError,
                                "near_plane: expected a positive distance, got nan"),
    "far_plane": ({"far_plane": 0.01}, ValueError,
                  "far_plane: expected more than near_plane 0.01, got 0.01"),
    "render_mode": ({"render_mode": "RGBA"}, ValueError,
                    "render_mode: expected one of RGB, D, ED, RGB+D, RGB+ED, got 'RGBA'"),
    "rasterize_mode": ({"rasterize_mode": "fast"}, ValueError,
                       "rasterize_mode: expected one of classic, antialiased, got 'fast'"),
    "camera_model": ({"camera_model": "lidar"}, ValueError,
                     "camera_model: expected one of pinhole, ortho, fisheye, ftheta, "
                     "got 'lidar'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_argument(case):
    changes, error, message = BAD[case]
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        rasterization(**scene_with(**changes))


NOT_YET = {
    "tile_size": 8,
    "distributed": True,
    "camera_model": "fisheye",
    "with_ut": True,
    "with_eval3d": True,
    "radial_coeffs": torch.zeros(2, 6),
    "tangential_coeffs": torch.zeros(2, 2),
    "thin_prism_coeffs": torch.zeros(2, 4),
    "ftheta_coeffs": object(),
    "rolling_shutter": "global",
    "viewmats_rs": torch.eye(4).expand(2, 4, 4),
}


@pytest.mark.parametrize("name", NOT_YET)
def test_unsupported_argument_is_named(name):
    with pytest.raises(NotImplementedError, match=f"^{name}: only .* supported, got "):
        rasterization(**scene_with(**{name: NOT_YET[name]}))


@pytest.mark.parametrize("name", ["packed", "segmented", "channel_chunk"])
def test_arguments_without_effect_are_accepted(name):
    value = {"packed": False, "segmented": True, "channel_chunk": 1}[name]
    expected, _, _ = rasterization(**scene_with())
    assert torch.equal(rasterization(**scene_with(**{name: value}))[0], expected)


@pytest.mark.parametrize("name", ["means", "opacities", "viewmats"])
def test_second_derivatives_are_refused(name):
    rendered = run(rasterization, scene_with())
    leaf = rendered.leaves[name]
    (gradient,) = torch.autograd.grad(rendered.colors.square().sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        torch.autograd.grad(gradient.square().sum(), leaf)


# The ops themselves, for whoever calls them without `rasterization`.


TENSORS = [
    (op, name)
    for op in NAMES
    for name, value in arguments_of(op).items()
    if isinstance(value, torch.Tensor)
]


@pytest.mark.parametrize("op, name", TENSORS)
def test_op_names_the_tensor_of_a_wrong_shape(op, name):
    arguments = arguments_of(op)
    arguments[name] = arguments[name][..., None]
    with pytest.raises(ValueError, match=rf"^{name}: expected shape \[.*\], got \["):
        call(op, arguments)


@pytest.mark.parametrize("op, name", TENSORS)
def test_op_names_the_tensor_of_a_wrong_dtype(op, name):
    arguments = arguments_of(op)
    arguments[name] = arguments[name].half() if name not in INTEGERS else arguments[name].short()
    # A half first tensor is what the others are compared with.
    first = next(k for k, v in arguments.items() if isinstance(v, torch.Tensor))
    named = r"\w+" if name == first else name
    with pytest.raises(TypeError, match=rf"^{named}: expected dtype .*, got "):
        call(op, arguments)


@pytest.mark.parametrize("op", [op for op in NAMES if "width" in arguments_of(op)])
@pytest.mark.parametrize("name", ["width", "height"])
@pytest.mark.parametrize("size", [0, (1 << 20) + 1])
def test_op_names_the_side_of_a_wrong_size(op, name, size):
    with pytest.raises(ValueError, match=f"^{name}: expected 1 to 1048576 pixels, got {size}"):
        call(op, arguments_of(op) | {name: size})


@pytest.mark.parametrize("op", ["splat_project", "splat_project_backward"])
@pytest.mark.parametrize("name", ["quats", "scales"])
def test_op_needs_a_shape(op, name):
    with pytest.raises(ValueError, match="quats, scales: both are needed"):
        call(op, arguments_of(op) | {name: None})


@pytest.mark.parametrize("op", ["splat_composite", "splat_composite_backward"])
def test_op_needs_a_channel(op):
    with pytest.raises(ValueError, match="features: expected at least one channel"):
        call(op, arguments_of(op) | {"features": torch.ones(2, 5, 0)})


def test_op_without_opacities_takes_the_full_extent():
    arguments = arguments_of("splat_project")
    radii, *_ = call("splat_project", arguments | {"opacities": None})
    opaque, *_ = call("splat_project", arguments | {"opacities": torch.ones(1, 5)})
    # 3.33 against sqrt(2 ln 255) = 3.329 standard deviations.
    assert ((radii - opaque) >= 0).all() and ((radii - opaque) <= 1).all() and (radii > 0).any()


@pytest.mark.parametrize("op", ["splat_project", "splat_project_backward"])
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_op_names_a_wrong_rho_min(op, value):
    with pytest.raises(ValueError, match=f"^rho_min: expected 0 to 1, got {value}"):
        call(op, arguments_of(op) | {"rho_min": value})


@pytest.mark.parametrize("op", ["splat_sh", "splat_sh_backward"])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"degree": 5}, "degree: expected 0 to 4, got 5"),
        ({"degree": -1}, "degree: expected 0 to 4, got -1"),
        ({"degree": 4}, "coeffs: expected at least 25 coefficients for degree 4, got 16"),
        ({"coeffs": torch.zeros(1, 3, 5, 16, 3)}, "coeffs: expected 1 or 2 cameras, got 3"),
        ({"coeffs": torch.zeros(1, 1, 5, 16, 0)}, "coeffs: expected at least one channel, got 0"),
    ],
)
def test_op_names_what_harmonics_cannot_be(op, changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call(op, arguments_of(op) | changes)


# Lists made by hand must not lead the kernels out of their arrays.

LISTS = ("tile_offsets", "tile_ids", "order", "starts", "entries_of")
DRAWING = [op for op in NAMES if LISTS[0] in arguments_of(op)]


@pytest.mark.parametrize("op", DRAWING)
@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("place", [0, 1, -1])
@pytest.mark.parametrize("value", [-1, 2**31 - 1])
def test_op_refuses_lists_that_lead_outside(op, name, place, value):
    arguments = arguments_of(op)
    arguments[name] = arguments[name].clone()
    arguments[name][place] = value
    limit = 10 if name in ("tile_ids", "order") else len(arguments["tile_ids"])
    offsets = f"offsets that rise from 0 to {limit}, the number of entries, got "
    ids = f"indices from 0 to below {limit}, got {value}$"
    wanted = offsets if name in ("tile_offsets", "starts") else ids
    with pytest.raises(ValueError, match=f"^{name}: expected {wanted}"):
        call(op, arguments)


@pytest.mark.parametrize("op", DRAWING)
@pytest.mark.parametrize("name", ["tile_offsets", "starts"])
def test_op_refuses_offsets_that_fall(op, name):
    arguments = arguments_of(op)
    entries = len(arguments["tile_ids"])
    arguments[name] = arguments[name].clone()
    arguments[name][1:3] = torch.tensor([entries, entries - 1])
    with pytest.raises(ValueError, match=f"^{name}: .* got 0 to {entries}, with falls in between$"):
        call(op, arguments)


@pytest.mark.parametrize("op", DRAWING)
def test_op_refuses_offsets_of_longer_lists(op):
    arguments = arguments_of(op)
    entries = len(arguments["tile_ids"])
    arguments |= {k: arguments[k][:-1] for k in ("tile_ids", "entries_of")}
    with pytest.raises(ValueError, match=f"^tile_offsets: .* to {entries - 1}, .* to {entries}$"):
        call(op, arguments)


# What 32 bits do not count.


def test_too_many_entries():
    """8192 Gaussians in all of 512 x 512 tiles: they are counted before memory is asked for."""
    n, side = 8192, 8192
    message = (
        "the image needs 2147483648 (tile, Gaussian) entries, and fewer than 2^31 fit in one call: "
        "lower the resolution, raise radius_clip or pass fewer cameras"
    )
    arguments = {
        "means2d": torch.full((1, n, 2), side / 2),
        "radii": torch.full((1, n, 2), side, dtype=torch.int32),
        "depths": torch.ones(1, n),
        "conics": torch.zeros(1, n, 3),
        "opacities": torch.ones(1, n),
    } | {"width": side, "height": side, "exact": False}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call("splat_bin", arguments)


@pytest.mark.parametrize("op", [op for op in NAMES if "backward" not in op])
def test_too_many_gaussians(op):
    """Views of one element: an error comes before they are made contiguous."""
    arguments = arguments_of(op)
    first = "means" if "means" in arguments else "means2d"
    n = 2**30  # through two cameras
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor) and 5 in value.shape:
            shape = [n if size == 5 else size for size in value.shape]
            arguments[name] = value.new_zeros(()).expand(shape)
    message = (
        f"{first}: expected fewer than 2^31 Gaussians times cameras, got 2147483648; "
        "pass fewer cameras in one call"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call(op, arguments)
