"""IterIS against the formulas evaluated densely, and what must hold whatever the numbers are."""

import copy
import weakref
from dataclasses import replace

import pytest
import torch
from pyext_plugins.iteris import statistics
from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.branch import Brancher
from pyext_plugins.iteris.merging import Merging, merge
from pyext_plugins.iteris.settings import Settings
from pyext_plugins.iteris.tasks import Batch, Task
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyext.errors import UserError

WIDTH, RANK = 12, 2


class Attention(nn.Module):
    """Queries and keys of one input, values of another: three modules, two of one group."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        h = self.norm(x)
        scores = self.q(h) @ self.k(h).transpose(-1, -2) / WIDTH**0.5
        return x + scores.softmax(-1) @ self.v(torch.tanh(h))


class Net(nn.Module):
    """Three dependent blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Attention() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


PRECISE = [("delta", torch.float64), ("full", torch.float64)]
NAMES = [f"blocks.{block}.{name}" for block in range(3) for name in "qkv"]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().double().eval()


def make_task(seed, names=NAMES, rank=RANK, samples=6, shift=0.0, weight=1.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    updates = {
        name: LowRank(draw(rank, WIDTH), 0.2 * draw(WIDTH, rank), 0.5 + 0.1 * seed)
        for name in names
    }
    mask = torch.ones(samples, 5, dtype=torch.bool)
    mask[:, 4] = False
    x = draw(samples, 5, WIDTH) + shift
    half = samples // 2
    batches = [Batch({"x": x[:half]}, (mask[:half],)), Batch({"x": x[half:]}, (mask[half:],))]
    return Task(f"task{seed}", updates, batches, weight)


def inputs(net, task, updates, names):
    """What modules read, by plain hooks on a copy with the updates inside its weights."""
    own, found = copy.deepcopy(net), {name: [] for name in names}
    for name, module in own.named_modules():
        if name in updates:
            with torch.no_grad():
                module.weight += updates[name].delta()
    for name in names:
        own.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: found[name].append(args[0])
        )
    with torch.no_grad():
        for batch in task.batches:
            own(**batch.inputs)
    masks = [batch.masks[0] for batch in task.batches]
    return {
        name: torch.cat([x[mask] for x, mask in zip(xs, masks, strict=True)])
        for name, xs in found.items()
    }


def dense(net, tasks, name, merged, settings):
    """The authors' formulas for one module, as they stand; the update, [o, d]."""
    weight = net.get_submodule(name).weight.detach()
    left, right, eye = 0, 0, torch.eye(WIDTH, dtype=torch.float64)
    for task in tasks:
        x = inputs(net, task, task.updates, [name])[name]
        xt = inputs(net, task, merged, [name])[name]
        delta = task.updates[name].delta() if name in task.updates else torch.zeros_like(weight)
        full = weight + delta
        lam = task.weight
        if settings.weighting == "full" or (settings.weighting == "delta" and not delta.any()):
            lam *= full.norm() ** 2 / (x @ full.T).norm() ** 2
        elif settings.weighting == "delta":
            lam *= delta.norm() ** 2 / (x @ delta.T).norm() ** 2
        gram, cross = xt.T @ xt, x.T @ xt
        ridge = {
            "fro": gram.norm() * eye,
            "trace": gram.trace() / WIDTH * eye,
            "diag": gram.diagonal().diag(),
        }[settings.reg] * settings.alpha
        target = full if settings.target == "full" else delta
        left += lam * (gram + ridge)
        right += lam * target @ (cross + ridge * (cross.norm() / gram.norm()))
    solved = torch.linalg.solve(left, right, left=False)
    return solved - weight if settings.target == "full" else solved


@pytest.mark.parametrize("target", ["delta", "full"])
@pytest.mark.parametrize("reg", ["fro", "trace", "diag"])
@pytest.mark.parametrize("weighting", ["full", "delta", "one"])
def test_each_layer_is_the_dense_solution_on_the_merged_prefix(net, target, reg, weighting):
    settings = Settings(target=target, reg=reg, weighting=weighting, alpha=1e-3)
    tasks = [make_task(1), make_task(2, NAMES[1:], rank=3, shift=0.5, weight=2.0)]
    merged = merge(net, tasks, settings).modules
    for name in NAMES:
        before = {other: merged[other] for other in NAMES if other[:8] < name[:8]}
        wanted = dense(net, tasks, name, before, settings)
        found = merged[name].delta()
        assert (found - wanted).norm() <= 1e-10 * wanted.norm(), name


def narrowed(task):
    """The task in float32."""
    updates = {
        name: LowRank(own.a.float(), own.b.float(), own.scale) for name, own in task.updates.items()
    }
    batches = [Batch({"x": batch.inputs["x"].float()}, batch.masks) for batch in task.batches]
    return replace(task, updates=updates, batches=batches)


@pytest.mark.parametrize("target, dtype", [*PRECISE, ("delta", torch.float32)])
@pytest.mark.parametrize("rank", [None, 3])
def test_iterating_converges_to_the_sweep(net, target, dtype, rank):
    tasks = [make_task(1), make_task(2, shift=0.5)]
    if dtype == torch.float32:
        net, tasks = net.float(), [narrowed(task) for task in tasks]
    sweep = merge(net, tasks, Settings(target=target, rank=rank)).modules
    settings = Settings(target=target, rank=rank, schedule="iterate", rounds=20)
    iterated = merge(net, tasks, settings)
    # Three dependent stages: two rounds after the first nothing changes, which the last one sees.
    assert iterated.report.facts["rounds"] == 4
    for name, update in sweep.items():
        other = iterated.modules[name].delta()
        assert (other - update.delta()).norm() <= 1e-6 * update.delta().norm()
    once = merge(net, tasks, Settings(target=target, rank=rank, schedule="iterate", rounds=1))
    last = NAMES[-1]
    gap = (once.modules[last].delta() - sweep[last].delta()).norm()
    assert gap > 1e-3 * sweep[last].delta().norm()


def test_float32_products_move_the_result_as_little_as_alpha_allows(net):
    # Grams are off by about a rounding, and the regulariser bounds what their inverse makes of it.
    narrow, tasks = copy.deepcopy(net).float(), [make_task(1), make_task(2, shift=0.5)]
    of32 = [narrowed(task) for task in tasks]
    for alpha in (1e-5, 1e-4):
        found, wanted = (
            merge(narrow, of32, Settings(alpha=alpha, products=products))
            for products in ("auto", "float64")
        )
        assert found.report.facts["products"] == "float32"
        assert wanted.report.facts["products"] == "float64"
        gaps = [
            float((own.delta() - wanted.modules[name].delta()).norm() / own.delta().norm())
            for name, own in found.modules.items()
        ]
        assert 0 < max(gaps) < 2**-24 / alpha
    # Inputs in float64 are multiplied in float64.
    forced, plain = (merge(net, tasks, Settings(products=own)) for own in ("float32", "float64"))
    assert forced.report.facts["products"] == "float64"
    for name, update in plain.modules.items():
        assert torch.equal(forced.modules[name].delta(), update.delta())


@pytest.mark.parametrize(
    "options, narrow",
    [
        ({}, True),
        ({"alpha": 1e-5}, True),
        ({"alpha": 9e-6}, False),
        ({"reg": "trace"}, False),
        ({"reg": "diag"}, False),
        ({"target": "full"}, False),
        ({"products": "float64"}, False),
        ({"products": "float32", "alpha": 0.0}, True),
    ],
)
def test_which_products_are_in_float32(options, narrow):
    assert Settings(**options).narrow is narrow


@pytest.mark.parametrize("target", ["delta", "full"])
def test_one_adapter_alone_comes_back(net, target):
    task = make_task(1, samples=40)
    merged = merge(net, [task], Settings(target=target, alpha=1e-6)).modules
    for name, update in task.updates.items():
        assert (merged[name].delta() - update.delta()).norm() <= 1e-9 * update.delta().norm()
    assert {update.rank for update in merged.values()} == {RANK if target == "delta" else WIDTH}


def test_the_cut_keeps_what_matters_on_the_samples(net):
    tasks = [make_task(1), make_task(2, shift=2.0)]
    whole = merge(net, tasks).modules[NAMES[0]].delta()
    found = merge(net, tasks, Settings(rank=2))
    row, update = found.report.rows[0], found.modules[NAMES[0]]
    xt = torch.cat([inputs(net, task, {}, [NAMES[0]])[NAMES[0]] for task in tasks])
    u, s, v = torch.linalg.svd(whole)
    plain = (u[:, :2] * s[:2]) @ v[:2]
    assert row["rank"] == 2 and 0 < row["lost"] < 1
    lost = {key: ((own - whole) @ xt.T).norm() for key, own in (("plain", plain),)}
    assert ((update.delta() - whole) @ xt.T).norm() < lost["plain"]
    kept = merge(net, tasks, Settings(energy=0.9)).report.rows
    assert all(row["lost"] ** 2 <= 0.1 for row in kept)
    assert min(row["rank"] for row in kept) < 4


def test_residuals_are_what_the_layer_is_off_by(net):
    tasks = [make_task(1), make_task(2, shift=0.5)]
    for target in ("delta", "full"):
        found = merge(net, tasks, Settings(target=target, weighting="one", alpha=1e-2))
        off = left = 0.0
        for task in tasks:
            x = inputs(net, task, task.updates, NAMES[-1:])[NAMES[-1]]
            xt = inputs(net, task, found.modules, NAMES[-1:])[NAMES[-1]]
            base = net.get_submodule(NAMES[-1]).weight.detach() * (target == "full")
            wanted = x @ (base + task.updates[NAMES[-1]].delta()).T
            off += (wanted - xt @ (base + found.modules[NAMES[-1]].delta()).T).norm() ** 2
            left += (wanted - xt @ base.T).norm() ** 2
        row = found.report.rows[-1]
        assert row["module"] == NAMES[-1]
        assert row["residual"] == pytest.approx(float((off / left) ** 0.5), rel=1e-8)


def test_modules_of_one_input_are_one_group(net):
    merging = Merging(net, [make_task(1)], Settings())
    assert [group.modules for group in merging.groups] == [
        group
        for b in range(3)
        for group in ((f"blocks.{b}.q", f"blocks.{b}.k"), (f"blocks.{b}.v",))
    ]


def test_the_model_is_left_as_it_was(net):
    task = make_task(1)
    net.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        x = task.batches[0].inputs["x"]
        wanted = net(x)
        merge(net, [task, make_task(2)])
        assert torch.equal(net(x), wanted) and net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_the_norm_of_wide_cross_grams_is_estimated(net, monkeypatch):
    tasks = [make_task(1), make_task(2, shift=0.5)]
    brancher = Brancher(net, NAMES)
    group = Merging(net, tasks, Settings()).groups[3]

    def sums(merged):
        with brancher.hooked():
            return statistics.collect(brancher, tasks[0], merged, [group], Settings())[group]

    exact = sums({})
    monkeypatch.setattr(statistics, "SKETCH_ABOVE", 1)
    estimated = sums({})
    assert estimated.cross is None
    # 64 signs: a standard deviation of 5 % at most.
    assert 0 < abs(float(estimated.cross_norm() / exact.cross_norm()) - 1) < 0.25
    for name in group.modules:
        torch.testing.assert_close(estimated.projected(name), exact.projected(name))
    same = sums(None)
    torch.testing.assert_close(same.cross_norm(), same.gram_norm())


def test_what_is_not_finite_is_named(net):
    task = make_task(1)
    task.batches[1].inputs["x"][0, 0, 0] = torch.inf
    with pytest.raises(UserError, match=r"task1: batch 1: the inputs of blocks\.0\.q are not fin"):
        merge(net, [task])


def test_a_silent_module_is_named(net):
    with torch.no_grad():
        net.blocks[0].q.weight.zero_()
    with pytest.raises(UserError, match=r"task2: blocks\.0\.q gives zero on all samples"):
        merge(net, [make_task(1), make_task(2, NAMES[1:])])


def test_no_regulariser_needs_enough_tokens(net):
    with pytest.raises(UserError, match=r"--alpha: 0 needs at least 12 tokens at blocks.0.q.*8"):
        merge(net, [make_task(1, samples=2)], Settings(alpha=0.0))


def test_layers_run_twice_are_for_iterating(net):
    net.blocks[2] = net.blocks[1]
    task = make_task(1, NAMES[:6])
    with pytest.raises(UserError, match=r"blocks\.1\.q is run 2 times .* use iterate"):
        merge(net, [task])
    found = merge(net, [task], Settings(schedule="iterate", alpha=1e-6, rounds=4)).modules
    for name, update in task.updates.items():
        assert (found[name].delta() - update.delta()).norm() <= 1e-6 * update.delta().norm()


def test_brancher_adds_updates_as_if_they_were_in_the_weights(net):
    task = make_task(1)
    brancher = Brancher(net, NAMES)
    with brancher.hooked():
        found = [brancher.inputs(batch, task.updates, {NAMES[-1]: 1}) for batch in task.batches]
    wanted = inputs(net, task, task.updates, NAMES[-1:])[NAMES[-1]]
    torch.testing.assert_close(torch.cat([own[NAMES[-1]] for own in found]), wanted)


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors made inside that were there at once, each storage once."""

    def __init__(self):
        super().__init__()
        self.most, self._alive = 0, weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        tensors = [own for own in tree_leaves(found) if isinstance(own, torch.Tensor)]
        self._alive.update({id(own): own for own in tensors})
        sizes = {}
        for own in list(self._alive.values()):
            storage = own.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        self.most = max(self.most, sum(sizes.values()))
        return found


@pytest.mark.parametrize("schedule", ["sweep", "iterate"])
def test_memory_does_not_grow_with_the_samples(net, schedule):
    found = []
    for times in (1, 16):
        tasks = [make_task(1), make_task(2)]
        tasks = [replace(task, batches=list(task.batches) * times) for task in tasks]
        with LiveBytes() as live:
            merge(net, tasks, Settings(schedule=schedule, rounds=2))
        found.append(live.most)
    # Not an input of all tokens may be held: that is 15 * 24 tokens of 12 numbers more.
    assert found[0] > 0 and found[1] - found[0] < 15 * 24 * WIDTH * 8 // 4
