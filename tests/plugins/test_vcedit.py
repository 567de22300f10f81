"""Lifting and rendering back, the hooks of `ViewConsistency`, fitting, and the edit loop."""

from dataclasses import replace

import pytest
import torch
from pyext_plugins.vcedit import demo as demo_module
from pyext_plugins.vcedit import measures, routes
from pyext_plugins.vcedit.cameras import Cameras
from pyext_plugins.vcedit.consistency import ViewConsistency
from pyext_plugins.vcedit.editing import Edit, Settings
from pyext_plugins.vcedit.fitting import SceneFit, fit_colors, fit_scene, render
from pyext_plugins.vcedit.lifting import geometry, lift, render_maps, resize_bilinear
from pyext_plugins.vcedit.simulation import MAP, SIZE, VIEWS, make_world
from pyext_plugins.vcedit.words import blend_masks, word_map, word_tokens

from pyext.errors import UserError
from pyext.ops.splat import rasterization
from pyext.report import Claim
from pyext.scene.gaussians import SH_C0


@pytest.fixture(scope="module")
def world():
    return make_world(torch.Generator().manual_seed(3))


def random_maps(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def weights_of(world, gaussian):
    """The weights of one Gaussian at all pixels [V, H, W]: its own image when it alone is white."""
    one = torch.zeros(len(world.scene), 1)
    one[gaussian] = 1
    return rasterization(**geometry(world.scene), colors=one, **world.cameras.arguments())[0][
        ..., 0
    ]


@pytest.mark.parametrize("rule", ["mean", "count-mean", "sum-over-count"])
def test_the_rules_are_what_the_table_says(world, rule):
    maps = random_maps(VIEWS, SIZE, SIZE, 2)
    lifted = lift(maps, world.cameras, world.scene, rule=rule)
    for gaussian in (0, 350, 699):
        w = weights_of(world, gaussian)
        touched = w > 0
        value = {
            "mean": (w[..., None] * maps).sum((0, 1, 2)) / w.sum(),
            "count-mean": maps[touched].mean(0),
            "sum-over-count": (w[..., None] * maps).sum((0, 1, 2)) / touched.sum(),
        }[rule]
        # Sums of at most 16,000 products of float32.
        torch.testing.assert_close(lifted.values[gaussian], value, rtol=1e-4, atol=1e-6)
        assert int(lifted.count[gaussian]) == int(touched.sum())
        torch.testing.assert_close(lifted.mass[gaussian], w.sum(), rtol=1e-4, atol=1e-6)


def test_small_maps_lift_as_if_stretched_first(world):
    maps = random_maps(VIEWS, 7, 11, 3)
    small = lift(maps, world.cameras, world.scene, resize="bilinear")
    large = lift(resize_bilinear(maps, SIZE, SIZE), world.cameras, world.scene)
    torch.testing.assert_close(small.values, large.values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(small.mass, large.mass)


def test_a_gaussian_nobody_sees_is_zero_and_marked(world):
    scene = replace(world.scene, means=world.scene.means.clone())
    scene.means[5] = torch.tensor([0.0, 500.0, 0.0])
    lifted = lift(torch.ones(VIEWS, SIZE, SIZE, 1), world.cameras, scene)
    assert not lifted.seen[5] and lifted.values[5] == 0 and lifted.count[5] == 0
    torch.testing.assert_close(lifted.values[lifted.seen], torch.ones(int(lifted.seen.sum()), 1))


def test_min_weight_leaves_out_what_is_hardly_seen(world):
    maps = torch.ones(VIEWS, SIZE, SIZE, 1)
    median = float(lift(maps, world.cameras, world.scene).mass.median())
    lifted = lift(maps, world.cameras, world.scene, min_weight=median)
    assert torch.equal(lifted.seen, lifted.mass > median)
    assert 0 < int(lifted.seen.sum()) < len(world.scene)
    assert torch.equal(lifted.values[:, 0] != 0, lifted.seen)


def test_clamp_clips_the_maps_first(world):
    maps = 3 * random_maps(VIEWS, SIZE, SIZE, 1) - 1
    clipped = lift(maps, world.cameras, world.scene, clamp=True).values
    assert torch.equal(clipped, lift(maps.clamp(0, 1), world.cameras, world.scene).values)
    assert not torch.equal(clipped, lift(maps, world.cameras, world.scene).values)


def test_render_maps_of_another_size_are_resized(world):
    values = random_maps(len(world.scene), 2)
    full = render_maps(values, world.cameras, world.scene)
    assert full.shape == (VIEWS, SIZE, SIZE, 2)
    small = render_maps(values, world.cameras, world.scene, 9, 13)
    torch.testing.assert_close(small, resize_bilinear(full, 9, 13))


def looking_away(cameras):
    turn = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    return replace(cameras, viewmats=turn @ cameras.viewmats)


def nan_in_view_3():
    maps = torch.zeros(VIEWS, SIZE, SIZE, 1)
    maps[3, 0, 0] = torch.nan
    return maps


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (torch.zeros(VIEWS, 16, 12, 1), {}, r"maps: 12 x 16 pixels, the cameras' images have "
         r"40 x 40; pass resize='bilinear'"),
        (torch.zeros(3, SIZE, SIZE, 1), {}, r"maps: expected shape \[10, h, w, D\], got \[3, 40"),
        (nan_in_view_3(), {}, "maps: view 3 holds not-a-number"),
        (torch.zeros(VIEWS, SIZE, SIZE, 1), {"rule": "sum"}, "rule: expected one of mean, count-"),
        (torch.zeros(VIEWS, SIZE, SIZE, 1), {"resize": "cubic"}, "resize: expected 'bilinear' or"),
    ],
)  # fmt: skip
def test_bad_maps_are_named(world, maps, options, message):
    with pytest.raises(ValueError, match=message):
        lift(maps, world.cameras, world.scene, **options)


def test_a_scene_that_no_camera_sees_is_an_error(world):
    away = looking_away(world.cameras)
    message = r"no Gaussian projects into any of the 10 views; check view matrices \(world-to-"
    with pytest.raises(ValueError, match=message):
        lift(torch.zeros(VIEWS, SIZE, SIZE, 1), away, world.scene)
    with pytest.raises(ValueError, match=message):
        ViewConsistency(world.scene, away)


def fewer(scene):
    fields = ("means", "scales", "quats", "opacities", "sh0", "shN")
    return replace(scene, **{name: getattr(scene, name)[:-1] for name in fields})


def test_a_scene_that_changed_since_lift_is_an_error(world):
    lifted = lift(torch.zeros(VIEWS, SIZE, SIZE, 1), world.cameras, world.scene)
    message = "scene changed since lift: 700 Gaussians have values, the scene has 699"
    with pytest.raises(ValueError, match=message):
        render_maps(lifted, world.cameras, fewer(world.scene))
    consistency = ViewConsistency(world.scene, world.cameras)
    consistency.scene = fewer(world.scene)
    with pytest.raises(ValueError, match=message):
        consistency.on_blend(1, torch.zeros(VIEWS, 8, 8, 1))
    with pytest.raises(ValueError, match=message):
        consistency.on_prediction(5, world.images)


def test_one_view_warns(world):
    with pytest.warns(UserWarning, match="with 1 view, consistency between views is vacuous"):
        lift(torch.zeros(1, SIZE, SIZE, 1), world.cameras[:1], world.scene)
    with pytest.warns(UserWarning, match="with 1 view"):
        ViewConsistency(world.scene, world.cameras[:1])


@pytest.mark.parametrize("rule", ["mean", "count-mean", "sum-over-count"])
def test_attention_maps_go_through_the_scene(world, rule):
    consistency = ViewConsistency(world.scene, world.cameras, rule=rule)
    maps = {"a": random_maps(VIEWS, 4, MAP * MAP, 5), "b": random_maps(VIEWS, 2, 2, 64, 5, seed=1)}
    after = consistency.on_attention(7, maps)
    assert {name: value.shape for name, value in after.items()} == {
        name: value.shape for name, value in maps.items()
    }
    for head, token in ((0, 0), (3, 4)):
        plane = maps["a"][:, head, :, token].reshape(VIEWS, MAP, MAP, 1)
        lifted = lift(plane, world.cameras, world.scene, rule=rule, resize="bilinear")
        wanted = render_maps(lifted, world.cameras, world.scene, MAP, MAP).clamp(0, 1)
        found = after["a"][:, head, :, token].reshape(wanted.shape)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_attention_is_controlled_at_multiples_of_seven_only(world):
    consistency = ViewConsistency(world.scene, world.cameras)
    maps = {"a": random_maps(VIEWS, 1, 64, 2)}
    for step in range(1, 16):
        changed = not torch.equal(consistency.on_attention(step, maps)["a"], maps["a"])
        assert changed == (step in (7, 14)), step


def test_large_maps_and_later_tokens_are_left_alone(world):
    consistency = ViewConsistency(world.scene, world.cameras, tokens=2, max_map_size=8)
    maps = {"large": random_maps(VIEWS, 1, 81, 3), "small": random_maps(VIEWS, 1, 64, 3)}
    after = consistency.on_attention(7, maps)
    assert torch.equal(after["large"], maps["large"])
    assert torch.equal(after["small"][..., 2:], maps["small"][..., 2:])
    assert not torch.equal(after["small"][..., :2], maps["small"][..., :2])


def test_half_precision_maps_stay_half(world):
    maps = {"a": random_maps(VIEWS, 2, 64, 3).half()}
    after = ViewConsistency(world.scene, world.cameras).on_attention(7, maps)["a"]
    assert after.dtype == torch.float16 and after.isfinite().all()


def test_maps_of_wide_images_keep_their_shape(world):
    wide = Cameras(world.cameras.viewmats, world.cameras.Ks, 2 * SIZE, SIZE)
    consistency = ViewConsistency(world.scene, wide)
    maps = random_maps(VIEWS, 1, 4 * 8, 1)
    lifted = lift(maps.reshape(VIEWS, 4, 8, 1), wide, world.scene, resize="bilinear")
    wanted = render_maps(lifted, wide, world.scene, 4, 8)
    found = consistency.on_attention(7, {"a": maps})["a"].reshape(wanted.shape)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="a: 33 positions are no map of the shape of 80 x 40"):
        consistency.on_attention(7, {"a": random_maps(VIEWS, 1, 33, 1)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_ctrl_steps": 0}, "attn_ctrl_steps: expected at least 1, got 0"),
        ({"tokens": 0}, "tokens: expected at least 1, got 0"),
        ({"rule": "none"}, "rule: expected one of"),
    ],
)
def test_bad_settings_are_named(world, options, message):
    with pytest.raises(ValueError, match=message):
        ViewConsistency(world.scene, world.cameras, **options)


@pytest.mark.parametrize("views", [VIEWS - 1, VIEWS + 1])
def test_another_number_of_views_is_an_error(world, views):
    consistency = ViewConsistency(world.scene, world.cameras)
    with pytest.raises(ValueError, match=rf"attn2: expected maps of 10 views, got \[{views}, "):
        consistency.on_attention(7, {"attn2": torch.zeros(views, 1, 64, 2)})
    with pytest.raises(
        ValueError, match=rf"images: expected shape \[10, 40, 40, 3\], got \[{views}"
    ):
        consistency.on_prediction(5, torch.zeros(views, SIZE, SIZE, 3))


def test_predictions_become_renders_of_one_scene(world):
    """Red in half of the views and blue in the others becomes one colour, seen from everywhere."""
    red, blue = world.ideal_edit(0), world.ideal_edit(1)
    images = torch.cat([red[: VIEWS // 2], blue[VIEWS // 2 :]])
    consistency = ViewConsistency(world.scene, world.cameras)
    assert torch.equal(consistency.on_prediction(4, images), images)
    after = consistency.on_prediction(5, images)
    means = [after[view][world.inside[view]].mean(0) for view in range(VIEWS)]
    before = [images[view][world.inside[view]].mean(0) for view in range(VIEWS)]
    assert torch.stack(means).std(0).max() < 0.5 * torch.stack(before).std(0).max()
    # What was consistent stays.
    again = consistency.on_prediction(10, after)
    assert (again - after).abs().mean() < 0.1 * (after - images).abs().mean()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_whole_scene_is_fitted_inside_a_pipeline_too(world, mode):
    consistency = ViewConsistency(world.scene, world.cameras, predictor=fit_scene)
    wanted = world.ideal_edit(0)
    with mode():
        after = consistency.on_prediction(5, wanted.clone())
    assert (after - wanted).abs().mean() < 0.95 * (world.images - wanted).abs().mean()


def test_fit_colors_recovers_a_recolouring(world):
    fitted = fit_colors(world.scene, world.cameras, world.ideal_edit(0))
    wanted = world.ideal_edit(0)
    before = (render(world.scene, world.cameras) - wanted).square().mean()
    assert (render(fitted, world.cameras) - wanted).square().mean() < 1e-3 * before
    assert torch.equal(fitted.means, world.scene.means)


def test_colour_that_depends_on_the_view_is_kept(world):
    """A change of the constant colour is found, whatever the other coefficients."""
    shN = 0.1 * (random_maps(len(world.scene), 3, 3) - 0.5)
    scene = replace(world.scene, shN=shN)
    wanted = render(replace(scene, sh0=scene.sh0 + 0.2), world.cameras)
    fitted = fit_colors(scene, world.cameras, wanted)
    before = (render(scene, world.cameras) - wanted).square().mean()
    assert (render(fitted, world.cameras) - wanted).square().mean() < 1e-3 * before
    assert torch.equal(fitted.shN, shN)
    whole = fit_scene(scene, world.cameras, wanted, epochs=4)
    assert (render(whole, world.cameras) - wanted).square().mean() < 0.5 * before


def test_fit_colors_is_the_ridge_solution(world):
    """Against the normal equations, solved densely for one channel."""
    images = random_maps(VIEWS, SIZE, SIZE, 3, seed=2)
    n = len(world.scene)
    identity = torch.eye(n)
    columns = [
        rasterization(
            **geometry(world.scene), colors=identity[:, i : i + 100], **world.cameras.arguments()
        )[0].flatten(0, 2)
        for i in range(0, n, 100)
    ]
    A = torch.cat(columns, -1).double()
    missing = (images - render(world.scene, world.cameras)).flatten(0, 2).double()
    ridge = 1.0
    change = torch.linalg.solve(A.T @ A + ridge * identity.double(), A.T @ missing)
    fitted = fit_colors(world.scene, world.cameras, images, ridge=ridge, iterations=60)
    found = (fitted.sh0 - world.scene.sh0)[:, 0] * SH_C0
    torch.testing.assert_close(found.double(), change, rtol=1e-2, atol=1e-3)


def test_fit_scene_comes_closer_and_repeats_to_the_bit(world):
    wanted = world.ideal_edit(0)
    first = fit_scene(world.scene, world.cameras, wanted, epochs=8)
    second = fit_scene(world.scene, world.cameras, wanted, epochs=8)
    before = (render(world.scene, world.cameras) - wanted).abs().mean()
    assert (render(first, world.cameras) - wanted).abs().mean() < 0.8 * before
    assert torch.equal(first.means, second.means) and torch.equal(first.sh0, second.sh0)


def test_only_editable_gaussians_change(world):
    editable = world.label[:, 0] > 0
    fit = SceneFit(world.scene, world.cameras, world.ideal_edit(1), steps=4, editable=editable)
    while fit.step < fit.steps:
        fit.advance()
    for name in ("means", "scales", "quats", "opacities", "sh0"):
        moved = (getattr(fit.scene, name) - getattr(world.scene, name)).reshape(len(editable), -1)
        assert not moved[~editable].any(), name
        assert moved[editable].any(), name
    with pytest.raises(ValueError, match=r"editable: expected shape \[700\], got \[3\]"):
        SceneFit(world.scene, world.cameras, world.images, steps=1, editable=torch.ones(3) > 0)


def test_a_perceptual_loss_is_added(world):
    plain = SceneFit(world.scene, world.cameras, world.ideal_edit(0), steps=1)
    other = SceneFit(
        world.scene, world.cameras, world.ideal_edit(0), steps=1,
        perceptual=lambda picture, target: 5 + 0 * picture.sum(),
    )  # fmt: skip
    assert other.advance() == pytest.approx(plain.advance() + 5, rel=1e-6)


def redden(images, consistency):
    return consistency.on_prediction(5, images * torch.tensor([1.0, 0.5, 0.5]))


def test_the_loop_edits_in_rounds(world):
    rounds = []

    def editor(images, consistency):
        rounds.append(consistency.round)
        return redden(images, consistency)

    losses = []
    edit = Edit(world.scene, world.cameras, editor, Settings(rounds=2, steps=20))
    edit.run(losses.append)
    assert edit.done and rounds == [0, 1]
    assert losses.count(None) == 2 and len(losses) == 42
    before, after = world.images.mean((0, 1, 2)), render(edit.scene, world.cameras).mean((0, 1, 2))
    assert after[1] < 0.9 * before[1] and after[2] < 0.9 * before[2]
    assert (world.scene.sh0 != edit.scene.sh0).any()


def test_a_stopped_edit_is_usable(world):
    steps = []
    edit = Edit(world.scene, world.cameras, redden, Settings(rounds=2, steps=20))
    edit.run(steps.append, lambda: len(steps) > 5)
    assert not edit.done and edit.fit.step == 5
    assert torch.equal(edit.scene.sh0, edit.fit.scene.sh0)
    stopped = Edit(world.scene, world.cameras, redden, Settings())
    asked = iter([False, True])
    with pytest.raises(KeyboardInterrupt):
        stopped.run(should_stop=lambda: next(asked))
    assert torch.equal(stopped.scene.sh0, world.scene.sh0)


@pytest.mark.parametrize(
    ("editor", "message"),
    [
        (lambda images, consistency: None, "editor: expected to return a tensor, got NoneType"),
        (lambda images, consistency: images[1:], r"editor: what it returned: images: expected sha"),
        (lambda images, consistency: images / 0 * 0, "images: view 0 holds not-a-number"),
    ],
)
def test_what_an_editor_gets_wrong_is_said(world, editor, message):
    with pytest.raises(UserError, match=message):
        Edit(world.scene, world.cameras, editor, Settings()).run()


def by_letters(text):
    """Two tokens for a word of more than four letters, one for its punctuation."""
    bare = text.rstrip(",.")
    return [0] * (1 + (len(bare) > 4) + (len(text) > len(bare)))


def test_words_are_found_where_the_prompt_has_them():
    prompt = "A statue, of a man like the Statue of liberty."
    assert word_tokens(prompt, "statue", by_letters) == [2, 3, 4, 10, 11]
    assert word_tokens(prompt, "of a", by_letters) == [5, 6]
    with pytest.raises(ValueError, match="words: 'woman' is not in the prompt 'A statue, of"):
        word_tokens(prompt, "woman", by_letters)
    with pytest.raises(ValueError, match="words: '' is not in the prompt"):
        word_tokens(prompt, "", by_letters)
    with pytest.raises(ValueError, match="prompt: expected at most 77 tokens, got 82"):
        word_tokens("man " * 80, "man", by_letters)


def test_a_word_map_is_the_mean_over_layers_heads_and_tokens():
    a, b = random_maps(2, 3, 16, 5), random_maps(2, 3, 64, 5, seed=1)
    found = word_map({"a": a, "b": b}, [1, 3], 8, 8)
    small = a[..., [1, 3]].mean((1, 3)).reshape(2, 4, 4, 1)
    wanted = (resize_bilinear(small, 8, 8) + b[..., [1, 3]].mean((1, 3)).reshape(2, 8, 8, 1)) / 2
    torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match="down: 32 positions are no square map"):
        word_map({"down": torch.zeros(2, 1, 32, 5)}, [1], 8, 8)


def test_blend_masks_are_relative_to_each_views_maximum():
    maps = torch.tensor([[0.1, 0.2], [0.4, 1.0]])[None].repeat(2, 1, 1)[..., None]
    maps[1] *= 0.25
    assert blend_masks(maps, 0.3)[..., 0].tolist() == [[[False, False], [True, True]]] * 2


def test_the_demo_reports_claims_and_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module, "SEEDS", 2)
    claim = Claim("not timed here", None, ">=", 20)
    monkeypatch.setattr(demo_module.routes, "compare", lambda: ([{"route": "none"}], [claim]))
    report = demo_module.demo(tmp_path)
    assert len(report.rows) == 8 and len(report.claims) == 13
    assert all(path.exists() for path in report.pictures.values())
    report.save(tmp_path / "report.json")


def test_the_routes_give_one_result(monkeypatch):
    for name, value in {"GAUSSIANS": 300, "SIZE": 48, "CHANNELS": 6}.items():
        monkeypatch.setattr(routes, name, value)
    rows, claims = routes.compare()
    assert [row["route"] for row in rows] == list(routes.ROUTES)
    assert claims[-1].held


def test_a_map_of_the_truth_measures_as_perfect(world):
    found = measures.of_maps(world, world.maps)
    assert found["MAE"] == 0
    spoilt = measures.of_maps(world, world.maps * random_maps(VIEWS, 1, 1, 1))
    assert spoilt["spread"] > found["spread"] and spoilt["MAE"] > 0
    edit = measures.of_edit(world, world.ideal_edit(0))
    assert edit["agreement"] == 1 and edit["PSNR (dB)"] > 100
