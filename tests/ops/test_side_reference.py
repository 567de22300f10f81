"""What the family `side` means: properties that the equations of UniPT and SHERL imply."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyext.interface.side_blocks import Down, Gate, GatedDown, Proj, Up
from pyext.reference import side

B, N, K, D, d, E = 2, 5, 3, 7, 4, 6


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def taps(count: int = K) -> list[Tensor]:
    return [random(B, N, D, seed=k) for k in range(count)]


def plain_down(count: int = K) -> Down:
    return Down(
        [random(d, D, seed=10 + k) for k in range(count)],
        [random(d, seed=20 + k) for k in range(count)],
        random(count, d),
        random(count, d, seed=1),
        norm="layer",
    )


GATE = Gate(random(d, seed=2), random(1))
PROJ = Proj([random(d, d)], [random(d)], random(d, seed=3), random(d, seed=4))
UP = Up(random(E, d), random(E))


def test_attention_is_one_over_all_taps_keys():
    """The sum over taps equals one product with the concatenated keys and one matrix of weights."""
    q, h, alpha = random(B, N, d), random(B, K, N, d), random(B, K).softmax(-1)
    mask = torch.tensor([[True] * N, [True, False, True, True, False]])
    z, rowsum = side.relu_attend(q, h, mask=mask, alpha=alpha, rho=1.0, eps=1e-6)
    scores = torch.einsum("bid,bkjd->bkij", q, h) * mask[:, None, None]
    weights = F.relu(scores)
    torch.testing.assert_close(rowsum, weights.sum(-1))
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-6) + torch.eye(N, dtype=q.dtype)
    mixing = (alpha[:, :, None, None] * weights).transpose(1, 2).reshape(B, N, K * N)
    torch.testing.assert_close(z, mixing @ h.reshape(B, K * N, d))


def test_masked_keys_are_not_seen():
    q, h = random(B, N, d), random(B, K, N, d)
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[:, 3] = False
    changed = h.clone()
    changed[:, :, 3] = 1e3
    torch.testing.assert_close(
        side.relu_attend(q, h, mask=mask).z, side.relu_attend(q, changed, mask=mask).z
    )


def test_causal_rows_see_no_later_key():
    q, h = random(B, N, d), random(B, K, N, d)
    changed = h.clone()
    changed[:, :, 3:] = 1e3
    before, after = (side.relu_attend(q, x, causal=True).z[:, :, :3] for x in (h, changed))
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("copies", [1, 2, 5, 10])
def test_copies_of_a_tap_share_half_the_weight(copies):
    """SHERL's redundancy: of n equal taps and one orthogonal, all as relevant, that one has 1/2."""
    same, other = torch.eye(2, d, dtype=torch.float64)
    h = torch.stack([same] * copies + [other])[None, :, None]
    guide = (same + other)[None, None]
    zero = torch.zeros(1, dtype=torch.float64)
    ones = torch.ones(d, dtype=torch.float64)
    beta = side.antired(guide, h, None, None, ones, zero, eps_l1=1e-9, eps_l2=1e-9).beta
    assert beta[0, 0, -1].item() == pytest.approx(0.5, abs=1e-6)


def test_zero_vectors_have_finite_gradients():
    h = random(B, K, N, d)
    h[:, 0] = 0
    h.requires_grad_()
    z = side.antired(random(B, N, d), h, None, None, random(d), torch.ones(1).double()).z
    (gradient,) = torch.autograd.grad(z.sum(), h)
    assert gradient.isfinite().all()


def test_pools():
    x, r = random(B, 3, 8, 8), 4
    even = side.guided_pool(x, torch.zeros(B, 3, 2, 2, dtype=x.dtype))
    torch.testing.assert_close(even, F.avg_pool2d(x, r).flatten(2).mT)
    both = F.max_pool2d(x, r) + F.avg_pool2d(x, r)
    torch.testing.assert_close(side.maxavg_pool(x, r), both.flatten(2).mT)


def test_packed_samples_are_those_of_a_batch():
    x = taps()
    whole = side.unipt_block(x, plain_down(), GATE, PROJ, UP)
    ends = torch.tensor([0, N, 2 * N], dtype=torch.int32)
    rows = [tap.flatten(0, 1) for tap in x]
    packed = side.unipt_block(rows, plain_down(), GATE, PROJ, UP, cu_seqlens=ends)
    torch.testing.assert_close(packed.y, whole.y.flatten(0, 1))
    torch.testing.assert_close(packed.alpha, whole.alpha)


def test_gradients_of_the_blocks():
    """The gate's bias shifts a softmax: it has none in UniPT."""
    down = plain_down()
    leaves = [x.requires_grad_() for x in (*down.w, down.a, down.c, *GATE, *PROJ.w, UP.w)]

    def unipt(*_: Tensor) -> Tensor:
        return side.unipt_block(taps(), down, GATE, PROJ, UP, eps=1e-3).y

    assert torch.autograd.gradcheck(unipt, leaves)
    (at_bias,) = torch.autograd.grad(unipt().square().sum(), GATE.b)
    torch.testing.assert_close(at_bias, torch.zeros_like(at_bias))

    square = [[random(d, d, seed=30 + 9 * i + k) for k in range(K)] for i in range(2)]
    bias = [[random(d, seed=60 + 9 * i + k) for k in range(K)] for i in range(3)]
    gated = GatedDown(down.w, bias[0], square[0], bias[1], square[1], bias[2])
    scale = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)

    def sherl(*_: Tensor) -> Tensor:
        tail = {"residual": random(B, N, E), "res_scale": scale}
        return side.sherl_block(taps(), gated, GATE, UP, eps_l1=1e-3, **tail).y

    assert torch.autograd.gradcheck(sherl, [*down.w, *GATE, UP.w, scale])


def test_errors_name_what_is_wrong():
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ValueError, match="unipt: sample 1 has 0 valid tokens"):
        side.unipt_block(taps(), plain_down(), GATE, mask=mask)
    with pytest.raises(ValueError, match="at least one shallow tap plus a guide"):
        side.sherl_block(taps(1), plain_down(1), GATE, UP)
    with pytest.raises(ValueError, match="tap 1 has 4 tokens, expected 5; pool it first"):
        side.unipt_block([taps()[0], taps()[1][:, :4], taps()[2]], plain_down(), GATE)
    with pytest.raises(ValueError, match="identity term needs equal query and key lengths"):
        side.relu_attend(random(B, 1, d), random(B, K, N, d), rho=1.0)
    with pytest.raises(ValueError, match="not an integer multiple of the guide grid"):
        side.guided_pool(random(B, 3, 7, 8), random(B, 3, 2, 2))


def test_packed_attention_is_that_of_each_sequence():
    q, h, alpha = random(1, 9, d), random(1, K, 9, d), random(2, K).softmax(-1)
    base, scale = torch.tensor([3, 0]), random(K)
    ends = torch.tensor([0, 4, 9], dtype=torch.int32)
    options = {"rho": 1.0, "base_scale": scale, "eps": 1e-3, "eps_mode": "clamp"}
    whole = side.relu_attend(q, h, alpha=alpha, base_index=base, cu_seqlens=ends, **options)
    for i, s in enumerate((slice(0, 4), slice(4, 9))):
        own = {"alpha": alpha[i, None], "base_index": base[i, None], **options}
        z, rowsum = side.relu_attend(q[:, s], h[:, :, s], **own)
        torch.testing.assert_close(whole.z[:, s], z)
        torch.testing.assert_close(whole.rowsum[:, :, s], rowsum)


def test_statistics_over_a_batch_are_those_of_the_tokens_that_count():
    mask = torch.tensor([[True] * N, [True, False, True, True, False]])
    w = [random(d, D, seed=k) for k in range(K)]
    h, total, squares, pool = side.project(taps(), w, norm="batch", mask=mask, pool=True)
    for k in range(K):
        counted = torch.cat([h[0, k], h[1, k][mask[1]]])
        torch.testing.assert_close(total[k], counted.sum(0))
        torch.testing.assert_close(squares[k], counted.square().sum(0))
        torch.testing.assert_close(pool[1, k], h[1, k][mask[1]].mean(0))


@pytest.mark.parametrize("layout, order", [("layer", (0, 1, 2, 3)), ("token", (0, 2, 1, 3))])
def test_layouts_differ_in_memory_alone(layout, order):
    w = [random(d, D, seed=k) for k in range(K)]
    h = side.project(taps(), w, layout=layout).h
    assert h.permute(order).is_contiguous()
    torch.testing.assert_close(h, torch.stack([x @ m.T for x, m in zip(taps(), w, strict=True)], 1))


def test_dropout_depends_on_the_seed_alone_and_keeps_the_mean():
    x = torch.ones(200, 50)
    first, again, other = (side.up(x, torch.eye(50), dropout_p=0.3, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.unique().tolist() == pytest.approx([0, 1 / 0.7])
    # The share of 10,000 kept ones: five deviations of a binomial.
    assert (first > 0).float().mean().item() == pytest.approx(0.7, abs=5 * (0.21 / 1e4) ** 0.5)


def test_up_is_a_norm_between_activations_and_a_residual():
    x, residual, scale = random(B, N, d), random(B, N, E), torch.tensor([0.3], dtype=torch.float64)
    gamma, beta = random(E, seed=5), random(E, seed=6)
    y = side.up(x, UP.w.detach(), UP.b, pre_act="relu", post_act="quick_gelu", gamma=gamma,
                beta=beta, residual=residual, res_scale=scale, out_scale=1 - scale)  # fmt: skip
    normed = F.layer_norm(F.relu(x) @ UP.w.detach().T + UP.b, [E], gamma, beta)
    want = (1 - scale) * normed * torch.sigmoid(1.702 * normed) + scale * residual
    torch.testing.assert_close(y, want)


def test_lists_of_a_gate_are_checked_one_by_one():
    w, square, bias = ([random(*shape)] * K for shape in ((d, D), (d, d), (d,)))
    with pytest.raises(ValueError, match=r"^b3: expected 3 tensors, one a tap, got 2$"):
        side.project_gated(taps(), w, bias, square, bias, square, bias[:2])
    down = GatedDown(w, bias, [*square[:2], w[0]], bias, square, bias)
    with pytest.raises(ValueError, match=r"^down.w2\[2\]: expected shape \[4, 4\], got \[4, 7\]$"):
        side.sherl_block(taps(), down, GATE, UP)
