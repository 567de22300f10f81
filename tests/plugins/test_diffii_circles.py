"""Diff-II's starting points: pairs, angles, the manifest; inversion and back."""

import itertools
import math

import pytest
import torch

pytest.importorskip("diffusers")

from pyext_plugins.diffii import manifest as manifests
from pyext_plugins.diffii.circles import draw_angles, draw_pairs
from pyext_plugins.diffii.manifest import Settings, load_manifest, plan, starting_points
from pyext_plugins.diffii.models import invert
from pyext_plugins.diffii.pool import Pool, load_pool, save_pool
from pyext_plugins.diffii.schedule import denoise, make_schedulers, set_steps

from pyext.errors import UserError


def pool(counts=(3, 2), shape=(2, 3, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    names = ("cat", "dog")
    tensors = {
        name: torch.randn(count, *shape, generator=generator)
        for name, count in zip(names, counts, strict=True)
    }
    facts = dict.fromkeys(("scheduler", "conditions"), {})
    facts |= {"files": {name: [f"{k}.png" for k in range(len(t))] for name, t in tensors.items()}}
    facts |= {"model": "m", "steps": 10, "pictures": "p", "dtype": "float32", "batch": 4}
    return Pool(tensors, facts)


def test_pairs_are_uniform_over_unordered_pairs():
    pairs = draw_pairs(5, 10_000, torch.Generator().manual_seed(0))
    counts = torch.tensor(
        [(pairs == torch.tensor(pair)).all(1).sum() for pair in itertools.combinations(range(5), 2)]
    )
    assert counts.sum() == 10_000
    # 1000 expected of each, standard deviation 30: five of them.
    assert (counts - 1000).abs().max() < 150
    with pytest.raises(UserError, match="inversions: expected at least 2, got 1"):
        draw_pairs(1, 3, torch.Generator())


def test_angles_go_all_around_and_shares_between():
    angles = draw_angles("paper", 10_000, torch.Generator().manual_seed(0))
    assert angles.dtype == torch.float64 and angles.min() >= 0 and angles.max() < 2 * math.pi
    # Mean pi, standard error 2 pi / sqrt(12) / 100: five of them.
    assert abs(float(angles.mean()) - math.pi) < 0.1
    assert draw_angles("slerp", 1000, torch.Generator()).max() < 1


def test_a_manifest_says_where_each_image_starts(tmp_path):
    found = plan(pool(), Settings(expansion=4, batch=3, seed=1), {"threads": 1})
    assert [len(batch) for batch in found.batches()] == [3] * 6 + [2]
    x = starting_points(pool(), found.images, "paper")
    for point, image in zip(x, found.images, strict=True):
        a, b = (pool().all[row].double() for row in image.rows)
        alpha = math.acos(float((a * b).sum() / a.norm() / b.norm()))
        assert alpha == pytest.approx(image.alpha)
        weights = math.sin(alpha + image.phi), -math.sin(image.phi)
        expected = (weights[0] * a + weights[1] * b) / math.sin(alpha)
        torch.testing.assert_close(point.double(), expected, rtol=1e-5, atol=1e-5)
        lengths = [float(v.norm()) / math.sqrt(v.numel()) for v in (a, b, expected)]
        assert image.norms == pytest.approx(lengths, rel=1e-5)
        assert image.pair == tuple(pool().names[row] for row in image.rows)
        assert image.pair[0].split("/")[0] == image.label == image.id.split("/")[0]
    found.save(tmp_path / "manifest.jsonl")
    read = load_manifest(tmp_path / "manifest.jsonl")
    assert read == found
    # A point does not depend on the points it is computed with.
    assert torch.equal(starting_points(pool(), read.images[4:5], "paper")[0], x[4])


def test_seeds_suffixes_and_norms_are_drawn():
    texts = ("in snow", "at night")
    first, again, other = (
        plan(pool(), Settings(expansion=9, suffixes=texts, suffix_fraction=0.3, seed=seed), {})
        for seed in (0, 0, 1)
    )
    assert first == again and first.images != other.images
    assert {image.suffix for image in first.images} == set(texts)
    for norm in ("unit", "gauss", "lerp", "slerp"):
        images = plan(pool(), Settings(norm=norm), {}).images
        assert [image.rows for image in images] != []
        assert not torch.equal(
            starting_points(pool(), images, norm), starting_points(pool(), images, "paper")
        )


def test_a_class_of_one_and_pairs_on_no_circle():
    with pytest.raises(
        UserError, match="class 'dog' has 1 inversion; circle interpolation needs 2"
    ):
        plan(pool((3, 1)), Settings(), {})
    found = plan(pool((3, 1)), Settings(single="noise"), {})
    lonely = [image for image in found.images if image.label == "dog"]
    assert len(lonely) == 5 and len({image.seed for image in lonely}) == 5
    assert all(image.pair is None and image.phi is None for image in lonely)
    assert not any(image.seed is not None for image in found.images if image.label == "cat")
    twins = pool()
    twins.tensors["dog"][1] = twins.tensors["dog"][0]
    with pytest.raises(UserError, match="inversions of dog/0.png and dog/1.png: parallel, sin"):
        plan(twins, Settings(), {})
    found = plan(twins, Settings(degenerate="noise"), {})
    assert all(image.seed is not None for image in found.images if image.label == "dog")
    # The other class is drawn as if the twins were not there.
    cats = [image for image in found.images if image.label == "cat"]
    assert cats == plan(pool(), Settings(), {}).images[: len(cats)]


def test_a_pool_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "inversions.safetensors"
    save_pool(pool(), path)
    read = load_pool(path)
    assert read.facts == pool().facts and torch.equal(read.all, pool().all)
    path.write_bytes(b"no")
    with pytest.raises(UserError, match="is not a file that `invert` wrote"):
        load_pool(path)
    with pytest.raises(UserError, match="--inversions: expected a file .* is not a file"):
        load_pool(tmp_path / "none")


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"expansion": 0}, "--expansion: expected 1 to 10000, got 0"),
        ({"guidance": 0.5}, "--guidance: expected 1 to 100, got 0.5"),
        ({"suffix_fraction": 1.5}, "--suffix-fraction: expected 0 to 1, got 1.5"),
        ({"suffix_fraction": 0.3}, "above 0 with suffixes and 0 without, got 0.3 with no suffixes"),
        ({"suffixes": ("a",)}, "got 0 with suffixes"),
        ({"norm": "linear"}, "--norm: expected paper, unit, gauss, lerp, slerp, got 'linear'"),
        ({"single": "first"}, "--single: expected raise, noise, got 'first'"),
        ({"batch": 0}, "--batch: expected 1 to 4096, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(setting, text):
    with pytest.raises(UserError, match=text):
        Settings(**setting)


def test_a_manifest_that_is_none_is_refused(tmp_path):
    path = tmp_path / manifests.NAME
    with pytest.raises(UserError, match="--output: .* cannot be read: No such file"):
        load_manifest(path)
    path.write_text("{}\n")
    with pytest.raises(UserError, match="is not a manifest of images"):
        load_manifest(path)


def test_inversion_goes_back_to_where_it_came_from():
    """For a prediction that changes slowly with x, more steps bring it closer: first order."""
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    errors = []
    for steps in (25, 50, 100):
        forward, inverse = make_schedulers({"set_alpha_to_one": True})
        set_steps(forward, inverse, steps, steps)
        z = invert(lambda y, t: torch.tanh(y), x, inverse)
        for t in forward.timesteps.tolist():
            z = denoise(torch.tanh(z), z, forward, t)
        errors.append(float((z - x).abs().max()))
    assert errors[2] < 0.7 * errors[1] < 0.5 * errors[0]
