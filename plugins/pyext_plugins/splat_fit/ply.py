"""Gaussian scenes as `.ply` in the layout that splat viewers read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyext.files import whole_file
from pyext_plugins.splat_fit.scene import Parameters

# Kerbl et al.'s layout without view-dependent colour: normals are there and unused, sizes are
# logarithms, opacity is a logit, colour is the constant spherical harmonic.
FIELDS = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)


def write_ply(path: Path, parameters: Parameters) -> None:
    """Write the Gaussians as little-endian binary."""
    values = {name: tensor.detach().numpy() for name, tensor in parameters.items()}
    count = len(values["means"])
    table = np.column_stack(
        [
            values["means"],
            np.zeros((count, 3)),
            values["dc"],
            values["logit_opacities"],
            values["log_scales"],
            values["quats"],
        ]
    ).astype("<f4")
    properties = "".join(f"property float {name}\n" for name in FIELDS)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {count}\n{properties}"
    with whole_file(path) as temporary:
        temporary.write_bytes(f"{header}end_header\n".encode() + table.tobytes())
