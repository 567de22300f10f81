"""Valid arguments of the ops of the family `splat`, by name, in the order of their schemas."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.splat_scenes import random_scene

ops = torch.ops.pyext

SIZE = {"width": 20, "height": 18}
NAMES = ("splat_project", "splat_project_backward", "splat_bin", "splat_composite",
         "splat_composite_backward")  # fmt: skip
INTEGERS = ("radii", "tile_offsets", "tile_ids", "order", "starts", "entries_of", "last")


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
    project |= {"near_plane": 0.01, "far_plane": 1e10, "radius_clip": 0.0}
    if op == "splat_project":
        return project
    radii, means2d, depths, conics = ops.splat_project(**project)
    if op == "splat_project_backward":
        gradients = {"g_means2d": means2d, "g_depths": depths, "g_conics": conics}
        return shape | view | SIZE | gradients | {"eps2d": 0.3, "radii": radii}
    drawn = {"means2d": means2d[0], "conics": conics[0]} | SIZE
    drawn["opacities"] = scene["opacities"].expand(2, n)
    binned = drawn | {"radii": radii[0], "depths": depths[0]}
    if op == "splat_bin":
        return binned
    lists = ("tile_offsets", "tile_ids", "order", "starts", "entries_of")
    composite = drawn | dict(zip(lists, ops.splat_bin(**binned), strict=True))
    composite |= {"features": scene["colors"][0], "alpha_max": 0.999}
    if op == "splat_composite":
        return composite
    out, transmittance, last = ops.splat_composite(**composite)
    upstream = {"g_out": out, "g_transmittance": transmittance}
    return composite | upstream | {"transmittance": transmittance, "last": last}
