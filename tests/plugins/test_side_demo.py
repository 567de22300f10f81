"""The demos, at a fraction of their size: their claims are theirs to keep."""

import io

import pytest
import torch
from PIL import Image

from tests.plugins import side_models

pytest.importorskip("sklearn")

from pyext_plugins.data.readers import Texts
from pyext_plugins.side import demo, digits, efficientnet, photos, reviews
from pyext_plugins.side.cnn import StageModel
from pyext_plugins.side.config import UniptConfig
from pyext_plugins.side.table import read_table
from pyext_plugins.side.training import Settings


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "SEEDS", 1)
    monkeypatch.setitem(digits.PRETRAIN, "steps", 3)
    monkeypatch.setattr(digits.fit, "__defaults__", (2, 8, 3e-3))
    monkeypatch.setenv("PYEXT_DATA", str(tmp_path / "no data"))


@pytest.mark.parametrize("name", ["unipt", "sherl"])
def test_a_demo_reports_claims_and_a_picture(name, small, tmp_path):
    report = getattr(demo, name)(tmp_path)
    assert [row["arm"] for row in report.rows] == list(digits.ARMS)
    assert all(path.exists() for path in report.pictures.values())
    claims = {claim.text: claim for claim in report.claims}
    frozen = claims["parameters of frozen backbones with a gradient"]
    memory = [claim for text, claim in claims.items() if text.startswith("saved for backward: ")]
    assert frozen.held and len(memory) == 5 and all(claim.held for claim in memory)
    kinds = ("reviews: ", "photos: ")
    on_data = [claim for text, claim in claims.items() if text.startswith(kinds)]
    assert on_data and all(claim.held is None for claim in on_data)  # no data, no verdict
    report.save(tmp_path / "report.json")


def test_arms_have_the_sizes_of_the_card():
    sizes = {"probe": 260, "unipt": 18_533, "sherl": 15_398, "lst": 28_314, "adapter": 13_028}
    for arm, size in sizes.items():
        reader = digits.build(arm, digits.make_backbone(), digits.ROTATIONS, 0)
        assert sum(p.numel() for p in reader.parameters() if p.requires_grad) == size, arm


def test_the_backbone_is_trained_once(small, tmp_path, monkeypatch):
    data, path = digits.load_digits(), tmp_path / "backbone.safetensors"
    first = digits.backbone(data, path).state_dict()
    monkeypatch.setattr(digits, "fit", None)
    second = digits.backbone(data, path).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_pictures_are_shared_out_once():
    data = digits.load_digits()
    parts = [data.pretrain, data.pool, data.test]
    assert [len(part.labels) for part in parts] == [900, 400, 497]
    assert len(data.labelled(0).labels) == 200
    turned = data.test.rotated(0)
    back = [im.rot90(-int(k), (-2, -1)) for im, k in zip(turned.images, turned.labels, strict=True)]
    assert torch.equal(torch.stack(back), data.test.images)


def test_a_tap_that_is_repeated_counts_once():
    for n in (1, 2, 5, 10):
        assert abs(demo._share_of_the_odd_one(n) - 0.5) < 1e-6
    assert demo._moved_by_repetition() < 0.5


def test_reviews_are_compared_over_seeds(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    encoder = side_models.encoder_folder(tmp_path / "encoder")
    table = read_table(side_models.reviews(tmp_path / "reviews.csv"), "text", "label")
    monkeypatch.setattr(reviews, "SEEDS", 2)
    monkeypatch.setattr(reviews, "SENTENCES", 2)
    monkeypatch.setattr(reviews, "TEXTS", 20)
    monkeypatch.setattr(reviews, "texts", lambda name: Texts(table.texts, table.labels, ("a", "b")))
    monkeypatch.setattr(reviews.cache, "is_here", lambda name: True)
    monkeypatch.setattr(reviews.cache, "path", lambda name: encoder)
    monkeypatch.setattr(reviews, "SETTINGS", Settings(epochs=1, batch=8, max_length=16))
    rows, claims = reviews.compare("unipt")
    assert [row["arm"] for row in rows] == ["unipt", "probe", "lora", "full"]
    assert all(row["by seed (%)"].count(",") == 1 for row in rows)
    assert all(claim.measured is not None for claim in claims)


def test_the_network_for_photos_has_the_shapes_of_its_weights():
    model = efficientnet.EfficientNetLite0().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_652_008
    pictures = torch.randn(1, 3, 64, 96)
    maps = StageModel(model, efficientnet.STAGES, UniptConfig(), (64, 96)).maps(pictures)
    assert [tuple(image.shape[1:]) for image in maps] == [
        *[(24, 16, 24), (40, 8, 12), (112, 4, 6), (320, 2, 3)]
    ]
    assert model(pictures).shape == (1, 1280) and model.classify(pictures).shape == (1, 1000)


class Runs:
    """What a pickle can do: a file of it runs a call when it is read."""

    def __reduce__(self):
        return (pytest.fail, ("the file was run",))


def test_weights_of_photos_are_tensors_and_nothing_else(tmp_path):
    path = tmp_path / "weights"
    state = efficientnet.EfficientNetLite0().state_dict()
    torch.save(state, path)
    loaded = efficientnet.load(path).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in state.items())
    bad = {
        "expected a state dict of tensors": {**state, "more": Runs()},
        "expected tensors by name and nothing else": {**state, "epoch": 3},
        "is of another network": {**state, "more": torch.zeros(1)},
    }
    for message, content in bad.items():
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            efficientnet.load(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match="expected tensors by name and nothing else"):
        efficientnet.load(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="expected a state dict of tensors"):
        efficientnet.load(path)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (7, 3, 2), (8, 5, 1), (9, 5, 2)])
def test_convolutions_fill_up_as_tensorflow_does(size, kernel, stride):
    conv = efficientnet.SameConv(1, 1, kernel, stride, bias=False)
    x = torch.randn(1, 1, size, size)
    places = -(-size // stride)
    total = max((places - 1) * stride + kernel - size, 0)
    padded = torch.zeros(1, 1, size + total, size + total)
    padded[..., total // 2 : total // 2 + size, total // 2 : total // 2 + size] = x
    expected = torch.nn.functional.conv2d(padded, conv.weight, stride=stride)
    assert conv(x).shape[-1] == places
    torch.testing.assert_close(conv(x), expected)


def test_photos_are_compared(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = []
    for number in range(24):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (number * 10, 0, 0)).save(file, "PNG")
        copies = 1 + (number % 3 == 0)
        kind, split = ("Kiwi", "Lime")[number % 2], ("train", "test")[number // 12]
        row = {"dataset": split, "finegrained_cat": kind, "image_data": file.getvalue()}
        rows += [row] * copies
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "groceries")
    torch.manual_seed(0)
    torch.save(efficientnet.EfficientNetLite0().state_dict(), tmp_path / "efficientnet-lite0")
    for name, value in {"SIDE": 64, "SHOTS": 4, "TESTED": 3, "STEPS": 1, "SEEDS": 2}.items():
        monkeypatch.setattr(photos, name, value)
    monkeypatch.setattr(photos.cache, "is_here", lambda name: True)
    monkeypatch.setattr(photos.cache, "path", lambda name: tmp_path / name)
    train = photos.read(tmp_path / "groceries", "train", 4)
    assert train.kinds.tolist() == [0] * 4 + [1] * 4
    assert len({tuple(image.flatten().tolist()) for image in train.images}) == 8
    table, claims = photos.compare()
    assert [row["arm"] for row in table] == ["probe", "unipt", "full"]
    assert [claim.held for claim in claims] == [True]
