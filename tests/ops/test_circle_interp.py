"""Points on the circles through pairs of vectors."""

from __future__ import annotations

import math

import pytest
import torch

from pyext import runtime
from pyext.interface.circle import NORMS
from pyext.ops import circle
from pyext.reference import circle as reference
from tests.ops.agreement import (
    DTYPES,
    assert_near,
    assert_same_on_any_threads,
    gradients,
    random,
)

ops = torch.ops.pyext
ANGLES = torch.linspace(0, 2 * math.pi, 9, dtype=torch.float64)[:8]

# Shapes of a vector: one value, fewer than a register has, rows that start at any address, more
# than a chunk, and a latent.
SHAPES = [(1,), (7,), (33,), (3, 5, 5), (2049,), (4, 16, 16)]


def inputs(shape=(33,), rows=4, count=3, angles=3, dtype=torch.float64, seed=0):
    """A pool, pairs that share rows, and angles."""
    pool = random(rows, *shape, dtype=dtype, seed=seed)
    pairs = torch.tensor(
        [[i % rows, (i + 1 + i // rows % (rows - 1)) % rows] for i in range(count)]
    )
    return pool, pairs, random(count, angles, seed=seed + 1)


def share_of(norm, angles):
    return angles.sigmoid() if norm in ("lerp", "slerp") else angles


def compare(shape, norm, dtype, dup=1, count=3):
    pool, pairs, angles = inputs(shape, count=count, dtype=dtype)
    angles = share_of(norm, angles)
    if shape == (1,):  # numbers are parallel
        norm = norm if norm in ("lerp", "gauss") else "gauss"
    leaves = (pool.requires_grad_(), angles.requires_grad_())
    options = {"norm": norm, "dup": dup}
    got, g_got = gradients(lambda: circle.interp(pool, pairs, angles, **options), leaves)
    want, g_want = gradients(lambda: reference.interp(pool, pairs, angles, **options), leaves)
    assert_near(got[0], want[0], 2, "z")
    torch.testing.assert_close(got[1], want[1], rtol=1e-13, atol=1e-12)
    assert torch.equal(got[2], want[2])
    for name, a, b in zip(("pool", "angles"), g_got, g_want, strict=True):
        assert_near(a, b, 8, name, dtype=dtype)


@pytest.mark.numerics_small
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES[:4])
def test_interp_small(shape, norm):
    for dtype in DTYPES:
        compare(shape, norm, dtype)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[4:])
def test_interp(shape, dtype, norm):
    for dup, count in ((1, 3), (2, 20)):  # few pairs are shared by threads, many are one a task
        compare(shape, norm, dtype, dup, count)


# Of the card of accuracies of this method: relative errors of a point at a given cosine.
BOUNDS = {0: 5e-8, 0.9: 1.5e-7, 0.99: 4e-7, 0.999: 1.5e-6, 0.99999: 1.3e-5}
ROUNDING = {torch.float16: 2.1e-4, torch.bfloat16: 1.7e-3}


def at_cosine(cosine, width=16384, pairs=8):
    """Pairs of normal vectors at an exact angle, one after the other."""
    a, b = random(pairs, width), random(pairs, width, seed=1)
    b = b - (a * b).sum(1, keepdim=True) / (a * a).sum(1, keepdim=True) * a
    b = b * (a.norm(dim=1) / b.norm(dim=1))[:, None]
    b = cosine * a + math.sqrt(1 - cosine**2) * b
    return torch.cat([a, b]), torch.arange(2 * pairs).reshape(2, pairs).mT.contiguous()


@pytest.mark.parametrize("cosine", BOUNDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_accuracy_at_a_cosine(cosine, dtype):
    pool, pairs = at_cosine(cosine)
    pool = pool.to(dtype)
    angles = ANGLES.expand(len(pairs), -1).contiguous() + 0.1
    got = circle.interp(pool, pairs, angles, min_sin=0).z.double()
    want = reference.interp(pool.double(), pairs, angles, min_sin=0).z
    error = ((got - want).norm(dim=-1) / want.norm(dim=-1)).max().item()
    assert error <= 1.05 * ROUNDING.get(dtype, BOUNDS[cosine])


def test_points_that_are_known():
    pool, pairs, _ = inputs((100,), rows=2, count=1)
    a, b = pool
    gram = circle.interp(pool, pairs, torch.zeros(1, 0)).gram
    alpha = float(circle.phi_from_lambda(gram, torch.ones(1, 1)))
    torch.testing.assert_close(math.cos(alpha), float(a @ b / (a.norm() * b.norm())))
    angles = torch.tensor([[0, 2 * math.pi - alpha, math.pi, math.pi - alpha]]).double()
    z = circle.interp(pool, pairs, angles).z[0]
    for got, want in zip(z, (a, b, -a, -b), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_swapping_a_pair_turns_the_circle_around():
    pool, pairs, angles = inputs()
    gram = circle.interp(pool, pairs, angles[:, :0]).gram
    turned = 2 * math.pi - circle.phi_from_lambda(gram, torch.ones(3, 1)) - angles
    swapped = circle.interp(pool, pairs.flip(1), turned).z
    torch.testing.assert_close(swapped, circle.interp(pool, pairs, angles).z)


def test_slerp_is_the_circle_backwards():
    pool, pairs, angles = inputs()
    share = angles.sigmoid()
    gram = circle.interp(pool, pairs, angles[:, :0]).gram
    back = -circle.phi_from_lambda(gram, share)
    slerp = circle.interp(pool, pairs, share, norm="slerp").z
    torch.testing.assert_close(slerp, circle.interp(pool, pairs, back).z)
    ends = circle.interp(pool, pairs, torch.tensor([[0.0, 1.0]] * 3), norm="slerp").z
    torch.testing.assert_close(ends[:, 0], pool[pairs[:, 0]])
    torch.testing.assert_close(ends[:, 1], pool[pairs[:, 1]])


def test_equal_lengths_stay():
    pool, pairs, angles = inputs((500,), count=4)
    pool = pool / pool.norm(dim=1, keepdim=True) * 3
    z = circle.interp(pool, pairs, angles * 2).z
    torch.testing.assert_close(z.norm(dim=-1), torch.full((4, 3), 3.0).double())


def test_unit_has_one_length_whatever_the_vectors_have():
    pool, pairs, angles = inputs((500,))
    pool = pool * torch.tensor([[1.0], [2.0], [0.1], [5.0]])
    z, gram, _ = circle.interp(pool, pairs, angles * 2, norm="unit")
    radius = gram[:, :2].mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(z.norm(dim=-1), radius.expand(3, 3))


@pytest.mark.parametrize(
    "norm, angle, variance",
    [("paper", 1.0, 1), ("gauss", 2.0, 1), ("slerp", 0.5, 1), ("lerp", 0.5, 0.5)],
)
def test_moments_of_normal_vectors(norm, angle, variance):
    """The circle of standard normal vectors is standard normal; the straight line is too short."""
    count, width = 200, 16384
    pool = random(2 * count, width)
    pairs = torch.arange(2 * count).reshape(count, 2)
    z = circle.interp(pool, pairs, torch.full((count, 1), angle), norm=norm).z
    values = count * width
    # The variance of a sample variance is 2 sigma^4 / n, that of a sample kurtosis 24 / n.
    assert abs(z.square().mean().item() - variance) <= 5 * variance * math.sqrt(2 / values)
    kurtosis = (z**4).mean() / z.square().mean() ** 2
    assert abs(kurtosis.item() - 3) <= 5 * math.sqrt(24 / values)


def degenerate_pool(dtype=torch.float32):
    """Rows: two good ones, a copy, one almost parallel, the opposite, zeros, a NaN, infinity."""
    pool = random(2, 50, dtype=dtype)
    a = pool[0]
    near = a * (1 + 1e-5 * random(50, dtype=dtype))
    broken = a.clone()
    broken[7] = math.nan
    huge = a.clone()
    huge[49] = math.inf
    return torch.stack([*pool, a, near, -a, torch.zeros_like(a), broken, huge])


DEGENERATE = {(0, 2): 2, (0, 3): 2, (4, 0): 4, (5, 1): 1, (0, 5): 1, (6, 1): 8, (1, 7): 8}
PAIRS = torch.tensor([(0, 1), *DEGENERATE])


@pytest.mark.numerics_small
@pytest.mark.parametrize("implementation", [circle, reference])
@pytest.mark.parametrize("norm", ["paper", "unit", "slerp"])
def test_degenerate_pairs_give_their_first_vector(implementation, norm):
    pool = degenerate_pool()
    z, _, status = implementation.interp(
        pool, PAIRS, torch.full((8, 2), 0.3), norm=norm, on_degenerate="first"
    )
    assert status.tolist() == [0, *DEGENERATE.values()]
    first = pool[PAIRS[1:, 0]][:, None].expand(-1, 2, -1)
    torch.testing.assert_close(z[1:], first, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("norm", ["gauss", "lerp"])
def test_without_an_angle_only_infinities_are_degenerate(norm):
    status = circle.interp(
        degenerate_pool(), PAIRS, torch.full((8, 2), 0.3), norm=norm, on_degenerate="first"
    ).status
    assert status.tolist() == [0, 0, 0, 0, 0, 0, 8, 8]


def test_gradients_of_degenerate_pairs():
    pool = degenerate_pool().requires_grad_()
    pairs = PAIRS[:6]  # of finite vectors
    angles = torch.full((6, 2), 0.3, requires_grad=True)
    leaves = (pool, angles)
    options = {"on_degenerate": "first"}
    _, got = gradients(lambda: circle.interp(pool, pairs, angles, **options).z, leaves)
    _, want = gradients(lambda: reference.interp(pool, pairs, angles, **options).z, leaves)
    assert_near(got[0], want[0], 8)
    assert_near(got[1], want[1], 8)
    assert torch.equal(got[1][1:], torch.zeros(5, 2))


@pytest.mark.parametrize("implementation", [circle, reference])
@pytest.mark.parametrize(
    "pair, message",
    [
        ((0, 2), r"pair 1 \(0, 2\) is parallel: sin\(alpha\) = .*, below min_sin = 0.0001; draw"),
        ((4, 0), r"pair 1 \(4, 0\) is antipodal: sin\(alpha\) = .*, below min_sin = 0.0001; draw"),
        ((0, 5), r"pair 1 \(0, 5\) has a vector of length zero; draw another pair, or set on_dege"),
        ((6, 1), r"pair 1 \(6, 1\) has a value that is not finite; draw another pair"),
    ],
)
def test_degenerate_pairs_are_refused(implementation, pair, message):
    pairs = torch.tensor([(0, 1), pair])
    with pytest.raises(ValueError, match=f"^pairs: {message}"):
        implementation.interp(degenerate_pool(), pairs, torch.zeros(2, 1))


def test_half_precision_takes_a_hundredth_of_a_radian_for_parallel():
    pool, pairs = at_cosine(0.99999, pairs=1)
    for dtype, status in ((torch.float16, 2), (torch.float32, 0)):
        found = circle.interp(pool.to(dtype), pairs, torch.zeros(1, 1), on_degenerate="first")
        assert found.status.tolist() == [status]


@pytest.mark.parametrize("dup", [1, 2])
def test_noise_in_place_of_degenerate_pairs(dup):
    pool = degenerate_pool()

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        options = {"on_degenerate": "noise", "generator": generator, "dup": dup}
        return circle.interp(pool, PAIRS, torch.full((8, 2), 0.3), **options).z

    z = draw(0)
    assert torch.equal(z, draw(0)) and not torch.equal(z, draw(1))
    clean = circle.interp(pool, PAIRS[:1], torch.full((1, 2), 0.3)).z
    copies = z.unsqueeze(0) if dup == 1 else z
    assert torch.equal(copies[0], copies[-1]) and torch.equal(copies[0, :1], clean)
    noise = copies[0, 1:]
    assert noise.isfinite().all() and abs(noise.std().item() - 1) < 0.2
    assert noise.flatten(1).unique(dim=0).shape[0] == 7


@pytest.mark.parametrize("norm", NORMS)
def test_interp_gradcheck(norm):
    pool, pairs, angles = inputs((6,))
    leaves = (pool.requires_grad_(), share_of(norm, angles).requires_grad_())
    for dup in (1, 2):
        assert torch.autograd.gradcheck(
            lambda pool, angles, dup=dup: circle.interp(pool, pairs, angles, norm=norm, dup=dup).z,
            leaves,
        )


def test_second_derivatives_are_refused():
    pool, pairs, angles = inputs()
    z = circle.interp(pool.requires_grad_(), pairs, angles).z
    (gradient,) = torch.autograd.grad(z.sum(), pool, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        torch.autograd.grad(gradient.sum(), pool)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [70001, 65536])
def test_large_results_are_the_same_bits(width, dtype):
    """Of those that go past the caches, at any alignment, and of those that do not."""
    pool, pairs, angles = inputs((width,), count=16, angles=16, dtype=dtype)
    whole = circle.interp(pool, pairs, angles).z
    assert whole.nbytes >= 2**25
    for p in (0, 7, 15):
        alone = circle.interp(pool, pairs[p : p + 1], angles[p : p + 1]).z
        assert torch.equal(whole[p : p + 1], alone)


@pytest.mark.parametrize("dup", [1, 2])
def test_result_in_a_given_tensor(dup):
    pool, pairs, angles = inputs(dtype=torch.float32)
    want = circle.interp(pool, pairs, angles, dup=dup)
    for implementation in (circle, reference):
        out = torch.full_like(want.z, math.nan)
        got = implementation.interp(pool, pairs, angles, dup=dup, out=out)
        assert got.z is out
        assert_near(out, want.z)
        assert torch.equal(got.status, want.status)


def test_noise_in_a_given_tensor():
    angles = torch.full((8, 2), 0.3)
    options = {"on_degenerate": "noise"}
    fresh, given = (torch.Generator().manual_seed(0) for _ in range(2))
    out = torch.empty(8, 2, 50)
    circle.interp(degenerate_pool(), PAIRS, angles, generator=given, out=out, **options)
    want = circle.interp(degenerate_pool(), PAIRS, angles, generator=fresh, **options).z
    assert torch.equal(out, want)


@pytest.mark.parametrize(
    "out, error, message",
    [
        (torch.zeros(3, 2, 33).double(), ValueError, r"expected shape \[3, 3, 33\], got \[3, 2"),
        (torch.zeros(3, 3, 33), TypeError, "expected dtype torch.float64, got torch.float32"),
        (torch.zeros(3, 33, 3).double().mT, ValueError, "expected a contiguous tensor"),
        (
            torch.zeros(3, 3, 33).double().requires_grad_(),
            NotImplementedError,
            "has no gradient; leave it out, or use torch.no_grad",
        ),
    ],
)
def test_wrong_given_tensors(out, error, message):
    with pytest.raises(error, match=f"^out: {message}"):
        circle.interp(*inputs(), out=out)


def test_interp_threads():
    for count in (3, 20):
        pool, pairs, angles = inputs((5000,), count=count, dtype=torch.float32)
        pool.requires_grad_(), angles.requires_grad_()

        def run(pool=pool, pairs=pairs, angles=angles):
            outputs, grads = gradients(lambda: circle.interp(pool, pairs, angles), (pool, angles))
            return [*outputs, *grads]

        assert_same_on_any_threads(run)


def test_instruction_sets_agree():
    pool, pairs, angles = inputs((5000,), dtype=torch.float32)
    results = []
    for isa in runtime.isas():
        with runtime.use_isa(isa):
            results.append(circle.interp(pool, pairs, angles).z)
    for other in results[1:]:
        assert_near(other, results[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interp_opcheck(dtype):
    pool, pairs, angles = inputs((2, 3), dtype=dtype)
    leaves = (pool.requires_grad_(), pairs, angles.requires_grad_())
    torch.library.opcheck(ops.circle_interp.default, (*leaves, "unit", 1e-3, True, 2))
    out = torch.empty(3, 3, 2, 3, dtype=dtype)
    arguments = (out, pool.detach(), pairs, angles.detach(), "unit", 1e-3, True, 1)
    torch.library.opcheck(ops.circle_interp_.default, arguments)


def test_interp_compiles_whole():
    pool, pairs, angles = inputs(dtype=torch.float32)
    whole = torch.compile(lambda *x: circle.interp(*x).z, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(pool, pairs, angles), circle.interp(pool, pairs, angles).z)


@pytest.mark.parametrize("rows, count, angles", [(4, 0, 3), (4, 3, 0), (0, 0, 2)])
def test_interp_of_nothing(rows, count, angles):
    pool, pairs, phi = torch.randn(rows, 2, 5), torch.zeros(count, 2).long(), None
    if count:
        pairs[:, 1] = 1
    phi = torch.zeros(count, angles, requires_grad=True)
    pool.requires_grad_()
    for implementation in (circle, reference):
        z = implementation.interp(pool, pairs, phi).z
        assert z.shape == (count, angles, 2, 5)
        g_pool, g_phi = torch.autograd.grad(z.sum(), (pool, phi))
        assert torch.equal(g_pool, torch.zeros_like(pool)) and g_phi.shape == phi.shape


def test_strided_pool():
    pool, pairs, angles = inputs((6, 5))
    strided = pool.transpose(1, 2)
    got = circle.interp(strided, pairs, angles).z
    torch.testing.assert_close(got, circle.interp(pool, pairs, angles).z.transpose(2, 3))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"pool": torch.zeros(4)}, ValueError, r"pool: expected shape \[N, ...\], got \[4\]"),
        ({"pool": torch.zeros(4, 3).long()}, TypeError, "pool: expected dtype float32, bfloat16"),
        ({"pairs": torch.zeros(3, 3).long()}, ValueError, r"pairs: expected shape \[P, 2\], got"),
        ({"pairs": torch.zeros(3, 2)}, TypeError, "pairs: expected dtype torch.int64, got"),
        ({"pairs": torch.tensor([[0, 1], [0, 4], [1, 2]])}, ValueError,
         "pairs: expected indices from 0 to below 4, the rows of pool, got 4 in pair 1"),
        ({"angles": torch.zeros(2, 3)}, ValueError, r"angles: expected shape \[3, K\], got \[2"),
        ({"angles": torch.zeros(3, 3).half()}, TypeError, "angles: expected dtype torch.float32 o"),
        ({"norm": "great"}, ValueError, "norm: expected one of 'paper', 'unit', 'gauss', 'lerp', "),
        ({"min_sin": -1.0}, ValueError, "min_sin: expected at least 0, got -1.0"),
        ({"on_degenerate": "skip"}, ValueError, "on_degenerate: expected one of 'raise', 'first'"),
        ({"dup": 3}, ValueError, "dup: expected 1 or 2, got 3"),
    ],
)  # fmt: skip
def test_interp_errors(change, error, message):
    pool, pairs, angles = inputs()
    arguments = {"pool": pool, "pairs": pairs, "angles": angles} | change
    for implementation in (circle, reference):
        with pytest.raises(error, match=f"^{message}"):
            implementation.interp(**arguments)


def test_more_values_than_addresses():
    pool = torch.zeros(1, 1).expand(1, 2**40)
    pairs = torch.zeros(1, 2).long().expand(2**14, 2)
    angles = torch.zeros(1, 1).expand(2**14, 2**10)
    with pytest.raises(ValueError, match="^angles: 16384 pairs of 1024 angles are 1844674407"):
        circle.interp(pool, pairs, angles)


def test_raw_op_checks_for_itself():
    pool, pairs, angles = inputs()
    with pytest.raises(
        ValueError, match="^norm: expected paper, unit, gauss, lerp or slerp, got x"
    ):
        ops.circle_interp(pool, pairs, angles, "x", 0.0, True, 1)
    with pytest.raises(ValueError, match=r"^angles: expected shape \[3, any\], got \[1, 3\]"):
        ops.circle_interp(pool, pairs, angles[:1], "paper", 0.0, True, 1)


def test_phi_from_lambda_errors():
    with pytest.raises(TypeError, match="^gram: expected dtype torch.float64"):
        circle.phi_from_lambda(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"^lam: expected shape \[2, K\], got \[3, 1\]"):
        circle.phi_from_lambda(torch.ones(2, 3).double(), torch.zeros(3, 1))
