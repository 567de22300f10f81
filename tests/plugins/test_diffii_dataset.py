"""Diff-II before a classifier: originals replaced by synthetics of their class."""

import pytest
import torch

pytest.importorskip("diffusers")

from pyext_plugins.diffii.dataset import Pictures, Replaced

from pyext.errors import UserError
from tests.plugins.diffii_models import picture_folder


class Listed:
    def __init__(self, samples, classes=None):
        self.samples = samples
        self.targets = [target for _, target in samples]
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


ORIGINALS = Listed([("a", 0), ("b", 1), ("c", 2)], ["cat", "dog", "emu"])
SYNTHETIC = Listed([("B1", 0), ("B2", 0), ("C1", 1)], ["dog", "emu"])


def test_a_share_is_replaced_within_its_class():
    torch.manual_seed(0)
    data = Replaced(ORIGINALS, SYNTHETIC, p=0.25)
    assert len(data) == 3
    seen = [data[1] for _ in range(2000)]
    assert {target for _, target in seen} == {1}
    counts = {name: sum(sample == name for sample, _ in seen) for name in ("b", "B1", "B2")}
    assert sum(counts.values()) == 2000
    # 250 expected of each synthetic, standard deviation 15: five of them.
    assert abs(counts["B1"] - 250) < 75 and abs(counts["B2"] - 250) < 75
    assert all(data[0] == ("a", 0) for _ in range(50))  # no synthetics of its class
    assert all(Replaced(ORIGINALS, SYNTHETIC, p=0)[1] == ("b", 1) for _ in range(50))
    assert all(Replaced(ORIGINALS, SYNTHETIC, p=1)[2] == ("C1", 2) for _ in range(50))


def test_bad_data_sets_are_refused():
    with pytest.raises(ValueError, match=r"p: expected a probability in \[0, 1\], got 1.5"):
        Replaced(ORIGINALS, SYNTHETIC, p=1.5)
    with pytest.raises(TypeError, match="expected a data set with targets, got list"):
        Replaced(ORIGINALS, [])
    with pytest.raises(ValueError, match="expected classes of the originals, got 'fox'"):
        Replaced(ORIGINALS, Listed([("F", 0)], ["fox"]))


def test_a_folder_is_read_as_torchvision_reads_it(tmp_path):
    folder = picture_folder(tmp_path / "data", counts=(2, 1))
    (folder / "cat" / ".left.png").write_bytes(b"")
    data = Pictures(folder, transform=lambda image: image.size)
    assert data.classes == ["cat", "dog"] and data.targets == [0, 0, 1]
    assert data[2] == ((10, 12), 1)
    assert Pictures(folder)[0][0].mode == "RGB"
    loader = torch.utils.data.DataLoader(Replaced(data, data), batch_size=3)
    ((_, targets),) = loader
    assert targets.tolist() == [0, 0, 1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="root: expected a folder for each class in .* has none"):
        Pictures(tmp_path / "empty")
