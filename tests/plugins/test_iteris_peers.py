"""Ways to merge LoRAs: what any of them must keep, and what each of them is."""

import pytest
import torch
from pyext_plugins.iteris.adapters import LowRank, load_adapter
from pyext_plugins.iteris.applied import applied
from pyext_plugins.iteris.peers import PEERS, Options, Problem, merge
from pyext_plugins.iteris.tasks import Task

from pyext.errors import UserError
from tests.plugins import merging

WIDTHS = {"first": (12, 10), "deep.first": (10, 12), "deep.second": (9, 9)}  # output, input
OWN = ["mean", "soup-uniform", "soup-greedy", "regmean"]
TIMES_SCALING = 2e-6  # float32 factors, a few products each


def adapter(seed, rank=3, scale=1.0, modules=WIDTHS):
    generator = torch.Generator().manual_seed(seed)

    def factor(*shape):
        return torch.randn(shape, generator=generator)

    updates = {
        name: LowRank(factor(rank, d), factor(o, rank), scale) for name, (o, d) in modules.items()
    }
    return Task(f"task{seed}", updates, [])


def grams(count, rows=40):
    generator = torch.Generator().manual_seed(7)
    found = []
    for _ in range(count):
        inputs = {
            name: torch.randn(rows, d, generator=generator) for name, (_, d) in WIDTHS.items()
        }
        found.append({name: x.double().T @ x.double() / rows for name, x in inputs.items()})
    return found


def task(*adapters, **options):
    return Problem(
        adapters,
        Options(**options),
        grams=lambda: grams(len(adapters)),
        score=lambda modules: 1.0,
    )


def deltas(modules):
    return {name: update.delta() for name, update in modules.items()}


def weighted(adapters, weights):
    """What a weighted sum is, by its definition."""
    found = {}
    for own, weight in zip(adapters, weights, strict=True):
        for name, update in own.updates.items():
            found[name] = found.get(name, 0) + weight * update.delta()
    return found


def assert_same(found, wanted, tolerance=TIMES_SCALING):
    assert set(found) == set(wanted)
    for name in wanted:
        difference = (found[name] - wanted[name]).norm() / wanted[name].norm()
        assert difference <= tolerance, name


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize(("rank", "scale"), [(1, 0.5), (3, 2.0), (5, 8 / 5**0.5)])
def test_one_adapter_of_weight_1_is_itself(name, rank, scale):
    one = adapter(0, rank, scale)
    merged = merge(name, task(one, weights=(1.0,), scale=1.0, density=1.0))
    assert_same(deltas(merged), deltas(one.updates), 1e-5)


@pytest.mark.parametrize("name", PEERS)
def test_one_adapter_of_rank_stabilised_scale_is_itself_from_its_folder(name, tmp_path):
    folder = merging.lora("bert", 1, tmp_path / "a", use_rslora=True, rank_pattern={"0.*value": 2})
    one = Task("one", load_adapter(folder).modules, [])
    eyes = {key: torch.eye(update.shape[1]).double() for key, update in one.updates.items()}
    alone = Problem(
        [one], Options((1.0,), scale=1.0, density=1.0), lambda: [eyes], lambda modules: 1.0
    )
    assert_same(deltas(merge(name, alone)), deltas(one.updates), 1e-5)


@pytest.mark.parametrize("name", [*OWN, "task-arithmetic", "peft-cat", "peft-svd"])
def test_the_order_of_adapters_does_not_matter(name):
    first, second, third = adapter(0), adapter(1, 2, 0.5), adapter(2, 4)
    pairs = list(zip((first, second, third), grams(3), strict=True))

    def merged(order):
        adapters, own = zip(*(pairs[i] for i in order), strict=True)
        alike = Problem(adapters, Options(rank=6), lambda: own, lambda modules: 1.0)
        return deltas(merge(name, alike))

    assert_same(merged((2, 0, 1)), merged((0, 1, 2)), 1e-5)


@pytest.mark.parametrize("name", ["mean", "peft-cat"])
def test_the_result_gives_the_weighted_sum_of_outputs(name):
    adapters = adapter(0), adapter(1, 2, 0.5, {"first": WIDTHS["first"]}), adapter(2, 4)
    weights = (0.7, -0.4, 1.1)
    merged = merge(name, task(*adapters, weights=weights))
    assert_same(deltas(merged), weighted(adapters, weights))
    model = torch.nn.Linear(10, 12)
    x = torch.randn(5, 10)

    def out(modules):
        with applied(model, {"": modules["first"]}), torch.no_grad():
            return model(x).double()

    base = model(x).double().detach()
    parts = [w * (out(own.updates) - base) for w, own in zip(weights, adapters, strict=True)]
    torch.testing.assert_close(out(merged) - base, sum(parts), rtol=1e-5, atol=1e-4)


def test_bf16_factors_are_summed_in_float32():
    adapters = adapter(0), adapter(1)
    halves = [
        Task(
            own.name,
            {k: LowRank(u.a.bfloat16(), u.b.bfloat16(), u.scale) for k, u in own.updates.items()},
            [],
        )
        for own in adapters
    ]
    found = merge("mean", task(*halves, weights=(1.0, -1.0)))
    assert_same(deltas(found), weighted(halves, (1.0, -1.0)))


def test_peft_linear_has_cross_terms_and_mean_has_none():
    first, second = adapter(0), adapter(1)
    opposite = task(first, second, weights=(1.0, -1.0))
    wanted = weighted((first, second), (1.0, -1.0))
    assert_same(deltas(merge("mean", opposite)), wanted)
    name = "first"
    error = (merge("peft-linear", opposite)[name].delta() - wanted[name]).norm()
    assert error > 0.3 * wanted[name].norm()


def test_a_rank_cuts_to_the_best_approximation():
    adapters = adapter(0), adapter(1)
    cut = merge("mean", task(*adapters, rank=2))
    for name, whole in weighted(adapters, (0.5, 0.5)).items():
        assert cut[name].rank == 2
        left = torch.linalg.svdvals(whole)[2:].norm()
        torch.testing.assert_close((cut[name].delta() - whole).norm(), left, rtol=1e-4, atol=1e-6)


def test_peft_svd_is_the_mean_cut_to_the_largest_rank():
    adapters = adapter(0), adapter(1)
    found = deltas(merge("peft-svd", task(*adapters)))
    assert_same(found, deltas(merge("mean", task(*adapters, rank=3))), 1e-5)


@pytest.mark.parametrize("shrink", [1.0, 0.9, 0.0])
def test_regmean_solves_its_least_squares_problem(shrink):
    """The gradient of sum_i tr((W - W_i) G_i (W - W_i)^T) vanishes."""
    adapters, own = (adapter(0), adapter(1, 2, 0.5)), grams(2)
    merged = merge("regmean", task(*adapters, shrink=shrink))
    for name, update in merged.items():
        assert update.rank == 5
        slope = scale = 0
        for each, gram in zip(adapters, own, strict=True):
            shrunk = shrink * gram[name] + (1 - shrink) * torch.diag(gram[name].diagonal())
            slope = slope + (update.delta() - each.updates[name].delta()) @ shrunk
            scale = scale + each.updates[name].delta() @ shrunk
        assert slope.norm() <= 1e-5 * scale.norm()


def test_regmean_with_equal_isotropic_grams_is_the_mean():
    adapters = adapter(0), adapter(1)
    eye = {name: torch.eye(d).double() for name, (_, d) in WIDTHS.items()}
    found = merge("regmean", Problem(adapters, grams=lambda: [eye, eye]))
    assert_same(deltas(found), weighted(adapters, (0.5, 0.5)))


def test_regmean_pulls_a_module_that_one_adapter_lacks_towards_nothing():
    whole, part = adapter(0), adapter(1, modules={"first": WIDTHS["first"]})
    eye = {name: torch.eye(d).double() for name, (_, d) in WIDTHS.items()}
    found = merge("regmean", Problem((whole, part), grams=lambda: [eye, eye]))
    wanted = whole.updates["deep.first"].delta() / 2
    assert_same({"m": found["deep.first"].delta()}, {"m": wanted})


def test_a_greedy_soup_leaves_out_what_lowers_the_metric():
    good, better, bad = adapter(0), adapter(1), adapter(2)
    goal = weighted((good, better), (0.5, 0.5))["first"]

    def score(modules):
        return -float((modules["first"].delta() - goal).norm())

    found = merge("soup-greedy", Problem((bad, good, better), score=score))
    assert_same(deltas(found), weighted((good, better), (0.5, 0.5)))


def test_dare_drops_by_the_seed_alone():
    adapters = adapter(0), adapter(1)
    torch.manual_seed(5)
    first = merge("peft-dare-linear", task(*adapters, seed=1))["first"].delta()
    torch.manual_seed(6)
    again = merge("peft-dare-linear", task(*adapters, seed=1))["first"].delta()
    other = merge("peft-dare-linear", task(*adapters, seed=2))["first"].delta()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("means", {}, r"no method 'means'. Did you mean 'mean'\?"),
        ("mean", {"weights": (1.0,)}, "weights: expected one for each of 2, got"),
        ("mean", {"rank": 0}, "rank: expected at least 1, got 0"),
        ("regmean", {"shrink": 1.5}, r"shrink: expected in \[0, 1\], got 1.5"),
        ("peft-ties", {"density": 0.0}, r"density: expected in \(0, 1\], got 0.0"),
        ("regmean", {"ridge": -1.0}, "ridge: expected at least 0, got -1"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        merge(name, task(adapter(0), adapter(1), **options))


def test_what_is_lacking_is_named():
    with pytest.raises(UserError, match="tasks: expected at least one, got none"):
        merge("mean", Problem(()))
    with pytest.raises(UserError, match="regmean: expected samples"):
        merge("regmean", Problem((adapter(0),)))
    with pytest.raises(UserError, match="soup-greedy: expected a metric"):
        merge("soup-greedy", Problem((adapter(0),)))
    with pytest.raises(UserError, match="peft-linear: All adapters must have the same r value"):
        merge("peft-linear", task(adapter(0, 2), adapter(1, 3)))
