"""Valid arguments of the ops of the family `splat`, by name, in the order of their schemas."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.splat_scenes import random_scene

ops = torch.ops.pyext

SIZE = {"width": 20, "height": 18}
NAMES = ("splat_project", "splat_project_backward", "splat_bin", "splat_composite",
         "splat_composite_backward", "splat_sh", "splat_sh_backward", "splat_unproject",
         "splat_unproject_cells", "splat_render_cells", "splat_contributors")  # fmt: skip
BACK = NAMES[7:]  # from pixels to Gaussians
INTEGERS = ("mask", "radii", "tile_offsets", "tile_ids", "order", "starts", "entries_of", "last")


def call(op: str, arguments: dict[str, Any]) -> Any:
    return getattr(ops, op)(**arguments)


def schema_order(op: str, arguments: dict[str, Any]) -> dict[str, Any]:
    schema = getattr(ops, op).default._schema
    assert {a.name for a in schema.arguments} == set(arguments)
    return {a.name: arguments[a.name] for a in schema.arguments}


def arguments_of(op: str, n: int = 5, channels: int = 3, covars: bool = False) -> dict[str, Any]:
    """For one scene through two cameras, all stages run up to this one."""
    return schema_order(op, _arguments(op, n, channels, covars))


def _arguments(op: str, n: int, channels: int, covars: bool) -> dict[str, Any]:
    scene = random_scene(
        n, **SIZE, batch=(1,), cameras=2, channels=channels, per_camera=True, covars=covars
    )
    shape = {"covars": None, "quats": scene["quats"], "scales": scene["scales"]}
    if covars:
        rows, columns = torch.triu_indices(3, 3)
        shape["covars"] = scene["covars"][..., rows, columns]
    view = {"means": scene["means"], "viewmats": scene["viewmats"], "Ks": scene["Ks"]}
    project = shape | view | SIZE | {"opacities": scene["opacities"], "eps2d": 0.3}
    options = {"ortho": False, "compensate": True, "rho_min": 0.0}
    project |= options | {
        "near_plane": 0.01,
        "far_plane": 1e10,
        "radius_clip": 0.0,
        "circle": False,
    }
    if op == "splat_project":
        return project
    radii, means2d, depths, conics, compensations = ops.splat_project(**project)
    if op == "splat_project_backward":
        gradients = {"g_means2d": means2d, "g_depths": depths, "g_conics": conics}
        gradients["g_compensations"] = compensations
        return shape | view | SIZE | gradients | options | {"eps2d": 0.3, "radii": radii}
    if op.startswith("splat_sh"):
        return _sh_arguments(op, scene["means"], radii, channels)
    drawn = {"means2d": means2d[0], "conics": conics[0]} | SIZE
    drawn["opacities"] = scene["opacities"].expand(2, n)
    binned = drawn | {"radii": radii[0], "depths": depths[0], "exact": True}
    if op == "splat_bin":
        return binned
    lists = ("tile_offsets", "tile_ids", "order", "starts", "entries_of")
    composite = drawn | dict(zip(lists, ops.splat_bin(**binned), strict=True))
    if op in BACK:
        return composite | {"alpha_max": 0.999} | _way_back(op, channels)
    composite |= {"features": scene["colors"][0], "alpha_max": 0.999}
    composite["absolute"] = torch.zeros_like(means2d[0])
    if op == "splat_composite":
        return composite
    out, transmittance, last = ops.splat_composite(**composite)
    upstream = {"g_out": out, "g_transmittance": transmittance, "absgrad": True}
    del composite["absolute"]
    return composite | upstream | {"transmittance": transmittance, "last": last}


def _sh_arguments(
    op: str, means: torch.Tensor, radii: torch.Tensor, channels: int
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    n = means.shape[1]
    arguments = {"degree": 3, "means": means, "centres": torch.tensor([[[0.0] * 3, [0.1] * 3]])}
    arguments["coeffs"] = torch.randn(1, 1, n, 16, channels, generator=generator)
    arguments["radii"] = radii
    if op == "splat_sh_backward":
        arguments["g_colours"] = ops.splat_sh(**arguments)
    return arguments


def _way_back(op: str, channels: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    image = (2, SIZE["height"], SIZE["width"])
    mask = torch.rand(image, generator=generator) < 0.7
    cells = {"cell_height": 4, "cell_width": 7}
    return {
        "splat_unproject": {
            "values": torch.rand(*image, channels, generator=generator),
            "mask": mask,
            "count": False,
        },
        "splat_unproject_cells": {"mask": mask, "count": False} | cells,
        "splat_render_cells": cells,
        "splat_contributors": {"k": 3},
    }[op]
