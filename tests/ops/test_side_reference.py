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
