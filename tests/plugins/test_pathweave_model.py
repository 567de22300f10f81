"""PathWeave on linear layers: what a path computes, and that earlier ones stay to the bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from pyext_plugins.pathweave.metrics import transfer_and_forgetting
from pyext_plugins.pathweave.model import PathWeave
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.plugins.pathweave_models import stir, train, two_layers

SITES = ["0", "2"]
MODALITIES = ("image", "video", "audio")


def woven(names=MODALITIES, ranks=(2, 3, 1), dtype=torch.float32, generator=None, **more):
    model = PathWeave(two_layers(dtype), SITES, generator=generator)
    for seed, (name, rank) in enumerate(zip(names, ranks, strict=False)):
        model.add_modality(name, rank=rank, **more)
        stir(model, name, seed)
    return model


def by_hand(linear, stage, x, eps=None):
    """The card's equations, an adapter after the other."""
    gate = torch.ones(*x.shape[:-1], len(stage.adapters), dtype=x.dtype)
    if stage.Wg is not None:
        logits = x @ stage.Wg
        if eps is not None:
            logits = logits + eps * (F.softplus(x @ stage.Wn) + 0.01)
        gate = logits.softmax(-1)
    y = linear(x)
    for e, adapter in enumerate(stage.adapters):
        v = x @ adapter.A.T + adapter.a
        if e < len(stage.inner):
            v = stage.inner[e](v)
        y = y + gate[..., e, None] * adapter.scale * (v @ adapter.B + adapter.c)
    return y


@pytest.mark.parametrize("gate", ["noisy", "soft", "none"])
@pytest.mark.parametrize("shape", [(4, 8), (2, 3, 8), (0, 8), (8,)])
def test_a_path_computes_what_the_card_says(gate, shape):
    model = woven(gate=gate, dtype=torch.float64).eval()
    x = torch.randn(shape, dtype=torch.float64)
    for name in MODALITIES:
        model.set_modality(name)
        path, stage = model.sites["0"], model.stage("0", name)
        torch.testing.assert_close(path(x), by_hand(path.linear, stage, x), rtol=1e-12, atol=1e-12)
    if gate == "noisy":
        eps = torch.randn(*shape[:-1], 3, dtype=torch.float64)
        wanted = by_hand(path.linear, stage, x, eps)
        torch.testing.assert_close(path(x, eps), wanted, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_equations_and_frozen_adapters_get_none():
    model = woven(dtype=torch.float64)
    path, stage = model.sites["0"], model.stage("0", "audio")
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    eps = torch.randn(5, 3, dtype=torch.float64)
    weights = torch.randn(5, 6, dtype=torch.float64)
    wanted_of = [x, *stage.parameters()]
    found = torch.autograd.grad((path(x, eps) * weights).sum(), wanted_of)
    wanted = torch.autograd.grad((by_hand(path.linear, stage, x, eps) * weights).sum(), wanted_of)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    (path(x, eps) * weights).sum().backward()
    with_gradient = {name for name, p in path.named_parameters() if p.grad is not None}
    assert with_gradient == {f"stages.2.{name}" for name, _ in stage.named_parameters()}


def test_a_modality_starts_as_the_model_alone():
    plain, x = two_layers(), torch.randn(3, 8)
    model = PathWeave(two_layers(), SITES)
    assert torch.equal(model(x), plain(x)) and model.modality is None
    model.add_modality("image", rank=2)
    assert torch.equal(model(x), plain(x)) and model.modality == "image"
    stir(model, "image")
    assert not torch.allclose(model(x), plain(x))
    model.set_modality(None)
    assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize("gate", ["noisy", "soft", "none"])
def test_earlier_paths_stay_to_the_bit(gate):
    x = torch.randn(4, 8)
    model = PathWeave(two_layers(), SITES)
    outputs, parameters = {}, {}
    for rank, name in enumerate(MODALITIES, 1):
        model.add_modality(name, rank=rank, gate=gate)
        before = {key: p.detach().clone() for key, p in model.stage_parameters(name).items()}
        train(model, lambda: model(x))
        after = model.stage_parameters(name)
        assert not any(torch.equal(before[key], after[key]) for key in after)
        outputs[name] = model(x).detach()
        parameters[name] = {key: p.detach().clone() for key, p in after.items()}
    for name in MODALITIES:
        model.set_modality(name)
        assert torch.equal(model(x), outputs[name])
        for key, parameter in model.stage_parameters(name).items():
            assert torch.equal(parameter, parameters[name][key])


def test_in_adapters_belong_to_a_pair_of_modalities():
    model = woven()
    for name, earlier in (("image", []), ("video", [2]), ("audio", [2, 3])):
        assert [layer.in_features for layer in model.stage("0", name).inner] == earlier
    first, second = (model.stage("0", name).inner[0] for name in ("video", "audio"))
    assert first.weight is not second.weight


def test_a_modality_may_stand_alone():
    model = PathWeave(two_layers(), SITES)
    model.add_modality("image", rank=2)
    stir(model, "image")
    model.add_modality("video", rank=2, reuse=False)
    x = torch.randn(3, 8)
    assert torch.equal(model(x), two_layers()(x))
    assert set(key.split("/")[1] for key in model.stage_parameters("video")) == {
        "own.A", "own.a", "own.B", "own.c", "own.scale"
    }  # fmt: skip


def test_all_that_is_trained_gets_a_gradient(tmp_path):
    model = woven().train()
    model(torch.randn(4, 8)).sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == len(model.stage_parameters("audio"))
    assert all(parameter.grad is not None for parameter in trained.values())
    # DistributedDataParallel refuses a second step where the first left a parameter out.
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            parallel(torch.randn(4, 8)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()


def test_training_with_an_earlier_adapter_under_training_is_refused():
    model = woven().train()
    x = torch.randn(2, 8)
    model.stage("2", "video").own.B.requires_grad_(True)
    message = r"refusing to train 'audio': 2\.stages\.1\.own\.B is trainable.* learned: image, vid"
    with pytest.raises(RuntimeError, match=message):
        model(x)
    model.eval()(x)
    model.add_modality("depth", rank=1)  # freezes it again
    model.train()(x)
    model.sites["0"].linear.weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"refusing to train 'depth': 0\.linear\.weight is"):
        model(x)


def test_noise_is_there_in_training_only_and_repeats_with_its_generator():
    x = torch.randn(4, 8)
    model = woven(generator=torch.Generator().manual_seed(3))
    quiet = model.eval()(x)
    assert torch.equal(model(x), quiet)
    model.train()
    loud = [model(x) for _ in range(2)]
    assert not torch.equal(*loud) and not torch.equal(loud[0], quiet)
    model.noise.generator.manual_seed(3)
    assert torch.equal(model(x), loud[0])
    state = torch.get_rng_state()
    model(x)
    assert torch.equal(torch.get_rng_state(), state)
    for gate in ("soft", "none"):
        still = woven(gate=gate)
        assert torch.equal(still.train()(x), still.eval()(x))


# torch takes no context_fn where it is reentrant: a generator of one's own is refused there.
@pytest.mark.parametrize(("own", "reentrant"), [(True, False), (False, False), (False, True)])
def test_a_recomputation_meets_the_same_noise(own, reentrant):
    x = torch.randn(4, 8, requires_grad=True)
    generator = torch.Generator().manual_seed(0) if own else None
    model = woven(generator=generator).train()
    more = {} if reentrant else {"context_fn": model.same_noise}

    def gradients(through):
        torch.manual_seed(5)
        if own:
            generator.manual_seed(5)
        # Two parts under way at once: the first is computed again after the second was begun.
        loss = through(x).sum() + 2 * through(x + 1).sum()
        x.grad = None
        loss.backward()
        return x.grad

    direct = gradients(model)
    again = gradients(lambda x: checkpoint(model, x, use_reentrant=reentrant, **more))
    # The backward pass inside the backward pass may add in another order.
    torch.testing.assert_close(again, direct, rtol=0, atol=1e-6 if reentrant else 0)


def test_a_single_adapter_has_no_gate_and_no_noise():
    model = woven(("image",))
    x = torch.randn(4, 8)
    assert model.stage("0", "image").Wg is None
    assert torch.equal(model.train()(x), model.eval()(x))


def test_a_hook_sees_what_the_layer_gave():
    model, seen = woven().eval(), []
    x = torch.randn(4, 8)
    wanted = model.sites["0"](x)
    model.sites["0"].linear.register_forward_hook(lambda m, given, out: seen.append(out))
    assert torch.equal(model.sites["0"](x), wanted)
    assert torch.equal(seen[0], two_layers()[0](x))


def test_a_copy_has_paths_of_its_own():
    model = woven(generator=torch.Generator().manual_seed(1)).eval()
    again, x = copy.deepcopy(model), torch.randn(4, 8)
    wanted = model(x)
    stir(model, "image", seed=9)
    assert torch.equal(again(x), wanted) and not torch.equal(model(x), wanted)


def test_a_recomputation_with_other_noise_is_refused():
    model = woven(generator=torch.Generator().manual_seed(0)).train()
    x = torch.randn(4, 8, requires_grad=True)
    for reentrant in (False, True):
        loss = checkpoint(model, x, use_reentrant=reentrant).sum()
        with pytest.raises(RuntimeError, match="pass it context_fn=model.same_noise"):
            loss.backward()


def test_a_gate_that_underflows_drops_no_row():
    model = woven().eval()
    path, stage = model.sites["0"], model.stage("0", "audio")
    with torch.no_grad():
        stage.Wg.zero_()[:, 0] = 1e4
    x = torch.ones(3, 8)
    x[1] *= -1
    wanted = by_hand(path.linear, stage, x)
    assert (x @ stage.Wg).softmax(-1).eq(0).sum() == 5
    torch.testing.assert_close(path(x), wanted)


def test_a_row_that_is_not_finite_stays_alone():
    model = woven().eval()
    x = torch.randn(4, 8)
    wanted = model(x)
    x[2, 1] = torch.inf
    found = model(x)
    assert found[2].isnan().any() and torch.equal(found[[0, 1, 3]], wanted[[0, 1, 3]])


def test_half_precision_keeps_logits_in_float32():
    wide = 1408
    model = PathWeave(nn.Sequential(nn.Linear(wide, 4)).half(), ["0"])
    for name in ("image", "video"):
        model.add_modality(name, rank=2)
        stir(model, name)
    stage = model.stage("0", "video")
    assert stage.own.A.dtype == stage.Wg.dtype == torch.float32
    with torch.no_grad():
        stage.Wg.fill_(1.0)[:, 1] = 1.5
    x = torch.full((2, wide), 60.0, dtype=torch.float16)
    assert (x @ stage.Wg.half()).isinf().all()
    found = model.eval()(x)
    assert found.dtype == torch.float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single = PathWeave(two_layers(), SITES)
        for name in ("image", "video"):
            single.add_modality(name, rank=2)
        assert single.train()(torch.randn(2, 8)).dtype == torch.bfloat16
    stage_gate = by_hand(model.sites["0"].linear.float(), stage, x.float())
    torch.testing.assert_close(found.float(), stage_gate, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_path_compiles_without_a_break(mode):
    model = getattr(woven(), mode)()
    x = torch.randn(4, 8)
    compiled = torch.compile(model.sites["0"], fullgraph=True, backend="eager")
    torch.manual_seed(0)
    wanted = model.sites["0"](x)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(x), wanted)


def test_bad_arguments_are_named_and_change_nothing():
    model = woven(("image", "video"))
    for action, message in (
        (lambda: model.set_modality("x"), "unknown modality 'x'; learned: image, video"),
        (lambda: model.stage_parameters("x"), "unknown modality 'x'; learned: image, video"),
        (lambda: model.add_modality("image"), "name: 'image' is learned already; learned: image"),
        (lambda: model.add_modality("a/b"), "name: expected letters, digits"),
        (lambda: model.add_modality("x", rank=0), "rank: expected 1 to 6 at site '0', got 0"),
        (lambda: model.add_modality("x", rank=6), "rank: expected 1 to 5 at site '2', got 6"),
        (lambda: model.add_modality("x", rank=2, gate="hard"), "gate: expected one of 'noisy', 's"),
    ):
        with pytest.raises(ValueError, match=message):
            action()
    assert model.modalities == ["image", "video"] and len(model.sites["0"].stages) == 2
    with pytest.raises(ValueError, match="unknown modality 'x'; learned: none"):
        PathWeave(two_layers(), SITES).set_modality("x")
    for sites, more, kind, message in (
        ([], {}, ValueError, "sites: expected names of layers, each once, got"),
        (["0", "0"], {}, ValueError, "sites: expected names of layers, each once"),
        (["5"], {}, ValueError, "sites: Sequential has no module '5'"),
        (["1"], {}, TypeError, "sites: expected torch.nn.Linear at '1', got Tanh"),
        (["0"], {"plain": ["2"]}, ValueError, "plain: expected some of the sites, got '2'"),
    ):
        with pytest.raises(kind, match=message):
            PathWeave(two_layers(), sites, **more)


def test_eps_of_another_size_is_named():
    model = woven()
    with pytest.raises(ValueError, match=r"eps: expected shape \[4, 3\], got \[4, 2\]"):
        model.sites["0"](torch.randn(4, 8), torch.randn(4, 2))


def test_transfer_and_forgetting_are_those_of_the_card():
    found = transfer_and_forgetting([[90.0], [80.0, 85.0], [70.0, 65.0, 75.0]])
    assert found.transfer == [90.0, 85.0, 75.0]
    assert found.forgetting == [0.0, 10.0, 20.0]
    with pytest.raises(ValueError, match="scores: expected at least 2 values in row 1, got 1"):
        transfer_and_forgetting([[1.0], [2.0]])
