"""Whole side networks as single ops: agreement, gradients, what they keep in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyext.interface.side_blocks import make_sherl_block, make_unipt_block
from pyext.ops import side
from pyext.ops.side import Down, Gate, GatedDown, Guide, Proj, Up
from pyext.reference import side as reference
from tests.ops.agreement import assert_near, assert_same_on_any_threads, gradients, random

ops = torch.ops.pyext

FACTOR = 64  # gradients go through up to eight products, two norms and an attention


class Parameters:
    """Random tensors of one type that require a gradient, in the order they were made."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.leaves: list[Tensor] = []

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        made = (random(*shape, seed=len(self.leaves)) * scale).to(self.dtype).requires_grad_()
        self.leaves.append(made)
        return made

    def matrix(self, rows: int, columns: int) -> Tensor:
        return self(rows, columns, scale=columns**-0.5)

    def down(self, taps: int, width: int, d: int, norm: bool = True) -> Down:
        w = [self.matrix(d, width) for _ in range(taps)]
        bias = [self(d) for _ in range(taps)]
        if not norm:
            return Down(w, bias, pre_act="relu")
        return Down(w, bias, self(taps, d), self(taps, d), norm="layer")

    def gated(self, taps: int, width: int, d: int) -> GatedDown:
        def matrices(columns: int) -> list[Tensor]:
            return [self.matrix(d, columns) for _ in range(taps)]

        def biases() -> list[Tensor]:
            return [self(d) for _ in range(taps)]

        return GatedDown(matrices(width), biases(), matrices(d), biases(), matrices(d), biases())

    def gate(self, d: int) -> Gate:
        return Gate(self(d, scale=d**-0.5), self(1))

    def proj(self, d: int, inner: int | None = None) -> Proj:
        if inner is None:
            return Proj([self.matrix(d, d)], [self(d)], self(d), self(d))
        w = [self.matrix(inner, d), self.matrix(d, inner)]
        return Proj(w, [self(inner), self(d)], self(d), self(d))

    def up(self, E: int, d: int, **options: Any) -> Up:
        return Up(self.matrix(E, d), self(E), **options)


Case = tuple[Callable[[Any], Any], list[Tensor]]


def unipt_case(name: str, dtype: torch.dtype, B: int, N: int, K: int, D: int, d: int) -> Case:
    """A preset of UniPT: a call of whichever implementation is given, and its leaves."""
    p = Parameters(dtype)
    packed = name == "packed"
    x = [p(*((B * N,) if packed else (B, N)), D) for _ in range(K)]
    # Scores of a few units, so that a rounding is not the difference between none and some.
    options: dict[str, Any] = {"eps": 1e-2}
    mask = random(B, N, seed=5) < 0.6
    mask[:, 0] = True
    if name == "token":  # CLIP4Clip
        parts = (p.down(K, D, d, norm=False), p.gate(d), None, p.up(D, d))
        guide = Guide(p(B, 1, D), p.matrix(d, D), p(d))
        index = torch.arange(B) % N
        options = {"guide": guide, "residual": guide.x, "rho": 0.0, "base_index": index,
                   "base_scale": p(K), "eps": 1e-2, "eps_mode": "clamp", "mask": mask}  # fmt: skip
        return lambda arm: arm.unipt_block(x, *parts, **options), p.leaves
    down, gate = p.down(K, D, d), p.gate(d)
    if name == "encoder":  # MDETR
        parts = (down, gate, p.proj(d, 2 * d))
        options |= {"mask": mask}
    elif name == "joint":  # CLIP-ViL
        parts = (down, gate, p.proj(d, D), p.up(D, d, pre_act="none"))
        options |= {"mask": mask, "residual": p(B, N, D)}
    elif packed:
        parts = (down, gate, p.proj(d), p.up(D, d))
        options |= {"cu_seqlens": torch.tensor([0, 2, B * N], dtype=torch.int32)}
    elif name == "bare":
        parts = (down, gate)
    else:  # VSE text, with a norm behind
        up = p.up(D, d)._replace(gamma=p(D), beta=p(D), post_act="gelu")
        parts = (down, gate, p.proj(d), up)
    return lambda arm: arm.unipt_block(x, *parts, **options), p.leaves


def sherl_case(name: str, dtype: torch.dtype, B: int, N: int, K: int, D: int, d: int) -> Case:
    """A preset of SHERL."""
    p = Parameters(dtype)
    x = [p(B, N, D) for _ in range(K)]
    down = p.gated(K, D, d) if name == "gated" else p.down(K, D, d)
    gate, up = p.gate(d), p.up(D, d)
    options: dict[str, Any] = {"eps_l1": 1e-2, "residual": x[-1]}
    if name == "plain":
        up = up._replace(gamma=p(D), beta=p(D))
        options |= {"dropout_p": 0.3, "seed": 4, "res_scale": p(1)}
    elif name == "gated":
        options |= {"res_scale": p(1)}
    else:  # MDETR
        options |= {"proj": p.proj(d, 2 * d)}
    return lambda arm: arm.sherl_block(x, down, gate, up, **options), p.leaves


CASES = [
    *((unipt_case, name) for name in ("text", "joint", "encoder", "token", "packed", "bare")),
    *((sherl_case, name) for name in ("plain", "gated", "proj")),
]
NAMED = pytest.mark.parametrize("case, name", CASES)
SMALL = {"B": 2, "N": 5, "K": 3, "D": 12, "d": 8}


def compare(call: Callable[[Any], Any], leaves: list[Tensor], dtype: torch.dtype) -> None:
    got, g_got = gradients(lambda: call(side), leaves)
    want, g_want = gradients(lambda: call(reference), leaves)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_near(a, b, 8, f"output {i}", dtype)
    # A gradient that vanishes is compared with what reaches its neighbours.
    size = max(g.double().square().mean().sqrt().item() for g in g_want)
    for i, (a, b) in enumerate(zip(g_got, g_want, strict=True)):
        assert a.dtype == b.dtype
        if b.double().abs().max() > 1e-3 * size:
            assert_near(a, b, FACTOR, f"gradient {i}", dtype)
        else:
            assert a.double().abs().max() < 2e-2 * size, f"gradient {i}"


@pytest.mark.numerics_small
@NAMED
def test_small(case, name):
    compare(*case(name, torch.float32, **SMALL), torch.float32)


@NAMED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agreement(case, name, dtype):
    compare(*case(name, dtype, B=3, N=40, K=4, D=48, d=32), dtype)


@NAMED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outputs_in_16_bits(case, name, dtype):
    call, _ = case(name, dtype, B=3, N=40, K=4, D=48, d=32)
    for a, b in zip(call(side), call(reference), strict=True):
        assert_near(a, b, 8, dtype=dtype)


@NAMED
def test_gradcheck(case, name):
    call, leaves = case(name, torch.float64, B=2, N=3, K=3, D=4, d=3)
    assert torch.autograd.gradcheck(lambda *_: call(side)[0], leaves)


@NAMED
def test_threads(case, name):
    call, leaves = case(name, torch.float32, B=4, N=48, K=3, D=40, d=72)

    def run():
        outputs, grads = gradients(lambda: call(side), leaves)
        return [*outputs, *grads]

    assert_same_on_any_threads(run)


@NAMED
def test_opcheck(case, name):
    """Of the op with the arguments that the function gives it."""
    call, _ = case(name, torch.float32, **SMALL)
    given = {}

    class Recorder:
        unipt_block = staticmethod(
            make_unipt_block(lambda *a: given.update(op=ops.side_unipt_block, a=a) or a)
        )
        sherl_block = staticmethod(
            make_sherl_block(lambda *a: given.update(op=ops.side_sherl_block, a=a) or a)
        )

    call(Recorder)
    torch.library.opcheck(given["op"].default, given["a"])


@NAMED
def test_compiles_into_one_graph(case, name):
    call, leaves = case(name, torch.float32, **SMALL)

    def loss() -> Tensor:
        return call(side)[0].square().sum()

    torch._dynamo.reset()  # each case is another function to it
    want = torch.autograd.grad(loss(), leaves, allow_unused=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(), leaves, allow_unused=True)
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def saved_bytes(call: Callable[[], Any], apart: list[Tensor]) -> int:
    """Bytes kept for the backward, each memory once, but those of `apart`."""
    memories: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        memories[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = call()
    for tensor in apart:
        memories.pop(tensor.untyped_storage().data_ptr(), None)
    assert outputs[0].requires_grad
    return sum(memories.values())


# What a fused version must keep of one sample beside taps and weights, by the equations: h, what
# rounds out to three of its taps (z, o and what Proj's norm leaves), and statistics; of the gated
# projection its inner activations and the merged features.
@pytest.mark.parametrize(
    "case, name, sizes, mebibytes",
    [
        (unipt_case, "joint", {"B": 1, "N": 260, "K": 13, "D": 768, "d": 384}, 6.13),
        (sherl_case, "gated", {"B": 1, "N": 128, "K": 10, "D": 768, "d": 192}, 1.13),
    ],
)
def test_saved_bytes(case, name, sizes, mebibytes):
    call, leaves = case(name, torch.float32, **sizes)
    assert saved_bytes(lambda: call(side), leaves) / 2**20 == pytest.approx(mebibytes, rel=0.1)


def test_frozen_taps_get_no_gradient():
    for case, name in ((unipt_case, "text"), (sherl_case, "gated")):
        call, leaves = case(name, torch.float32, **SMALL)
        for tap in leaves[: SMALL["K"]]:
            tap.requires_grad_(False)
        call(side)[0].sum().backward()
        assert all((leaf.grad is None) == (i < SMALL["K"]) for i, leaf in enumerate(leaves))


def test_sample_without_a_token():
    p = Parameters(torch.float32)
    x = [p(2, 3, 4) for _ in range(3)]
    parts = (p.down(3, 4, 4), p.gate(4))
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ValueError, match="unipt: sample 1 has 0 valid tokens"):
        side.unipt_block(x, *parts, mask=mask)
    rows = [tap.flatten(0, 1) for tap in x]
    ends = torch.tensor([0, 0, 6], dtype=torch.int32)
    with pytest.raises(ValueError, match="unipt: sample 0 has 0 valid tokens"):
        side.unipt_block(rows, *parts, cu_seqlens=ends)


def test_scores_beyond_half_precisions_range():
    """Row sums of float16 features that exceed 65504 stay finite."""
    p = Parameters(torch.float16)
    x = [p(1, 200, 64, scale=4.0) for _ in range(3)]
    down = p.down(3, 64, 512)
    down = down._replace(a=torch.full((3, 512), 8.0), c=torch.zeros(3, 512))
    y = side.unipt_block(x, down, p.gate(512)).y
    assert y.isfinite().all()
