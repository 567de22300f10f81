"""Files are those of gsplat's exporter."""

import torch
from gsplat import export_splats

from pyext import scene
from tests.test_scene import FIELDS, make


def test_gsplats_files_are_read(tmp_path):
    written = make(9, 3)
    values = {name: getattr(written, name) for name in FIELDS}
    export_splats(**values, format="ply", save_to=str(tmp_path / "a.ply"))
    found = scene.load(tmp_path / "a.ply")
    for name in FIELDS:
        assert torch.equal(getattr(found, name), values[name]), name
    export_splats(**values, format="splat", save_to=str(tmp_path / "a.splat"))
    found = scene.load(tmp_path / "a.splat")
    # It sorts them. Colours of this scene beyond what eight bits hold are cut off.
    order = [int((written.means - mean).norm(dim=1).argmin()) for mean in found.means]
    assert sorted(order) == list(range(9))
    assert torch.equal(found.means, written.means[order])
    assert torch.allclose(found.scales, written.scales[order], atol=1e-5)
    # Eight bits of opacity, cut off or rounded.
    difference = found.opacities.sigmoid() - written.opacities[order].sigmoid()
    assert difference.abs().max() < 1.3 / 255
    quats = torch.nn.functional.normalize(written.quats[order], dim=-1)
    assert (found.quats - quats).abs().max() < 1.3 / 128
