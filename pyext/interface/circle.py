"""Public functions and checks of the family ``circle``, over any ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyext.interface.checks import check_choice, check_storage, check_tensor

NORMS = ("paper", "unit", "gauss", "lerp", "slerp")
ON_DEGENERATE = ("raise", "first", "noise")
PREDICTIONS = ("epsilon", "v_prediction")
Norm = Literal["paper", "unit", "gauss", "lerp", "slerp"]
OnDegenerate = Literal["raise", "first", "noise"]
Prediction = Literal["epsilon", "v_prediction"]

# 1 / sin(alpha) amplifies the rounding that the stored vectors carry already, 5e-4 of them in
# float16; in float64 that of the inner products themselves, 1e-16 / sin(alpha)^2.
MIN_SIN = {torch.float16: 1e-2, torch.bfloat16: 1e-2, torch.float32: 1e-4, torch.float64: 1e-5}


class Interpolated(NamedTuple):
    """Points on circles, and what is known of the pairs they are from."""

    z: Tensor
    gram: Tensor
    status: Tensor


def make_interp(op: Callable[..., Any], op_to: Callable[..., Any]) -> Callable[..., Interpolated]:
    """`interp` over ops with the signatures of `circle_interp` and `circle_interp_`."""

    def interp(
        pool: Tensor,
        pairs: Tensor,
        angles: Tensor,
        *,
        norm: Norm = "paper",
        min_sin: float | None = None,
        on_degenerate: OnDegenerate = "raise",
        generator: torch.Generator | None = None,
        dup: int = 1,
        out: Tensor | None = None,
    ) -> Interpolated:
        """Points on the great circles through pairs of vectors: Diff-II's interpolation.

        With alpha the angle between a and b, a point is ``w_a a + w_b b``:

        - "paper": ``w_a = sin(alpha + phi) / sin(alpha)``, ``w_b = -sin(phi) / sin(alpha)``. The
          angle 0 is a, 2 pi - alpha is b, pi is -a (Wang and Chen 2025, equation 6, with phi =
          lambda alpha).
        - "unit": the same circle through a / abs(a) and b / abs(b), times the root mean square of
          their lengths: all points have one length.
        - "gauss": ``cos(phi) a + sin(phi) b``; of two independent standard normal vectors that is
          standard normal.
        - "lerp": ``(1 - lambda) a + lambda b``, angles are shares lambda. Of two standard normal
          vectors it is normal too, but of variance ``(1 - lambda)^2 + lambda^2``.
        - "slerp": the arc from a to b, angles are shares lambda in [0, 1].

        Products and sums over a vector are in float64, so that a result is as near as its own type
        allows even for vectors a hundredth of a radian apart.

        Args:
            pool: [N, ...], D values a vector: float32, bfloat16, float16 or float64.
            pairs: [P, 2] int64, rows of the pool.
            angles: [P, K] float32 or float64, radians or shares. With K = 0 only gram and status
                are computed.
            min_sin: below it a pair counts as parallel or antipodal. By default 1e-2 for 16-bit
                pools, 1e-4 for float32, 1e-5 for float64.
            on_degenerate: what becomes of a pair without a circle: an error ("raise"), its vector a
                ("first"), or standard normal noise ("noise"). To raise, a CUDA device is waited
                for.
            generator: of the noise.
            dup: 2 gives the points twice, one after the other: the batch of classifier-free
                guidance.
            out: z is written to this contiguous tensor of its shape and dtype. A result of many
                megabytes is written three times faster to memory that the process has already.

        Returns:
            z [P, K, ...], or [2, P, K, ...] if dup is 2, in the dtype of the pool; gram [P, 3]
            float64: a.a, b.b and a.b; status [P] uint8: 0, or why there is no circle: 1 a vector of
            length zero, 2 parallel, 4 antipodal, 8 not finite, 16 an index outside the pool (CUDA
            only; elsewhere it raises). Gradients flow to pool and angles through z; a degenerate
            pair gives its first vector z's gradient, and no other.

        Raises:
            ValueError, TypeError: an argument is wrong, or a pair has no circle; it is named.
            NotImplementedError: there is an ``out``, and an argument requires a gradient.
        """
        check_choice("norm", norm, NORMS)
        check_choice("on_degenerate", on_degenerate, ON_DEGENERATE)
        if dup not in (1, 2):
            raise ValueError(f"dup: expected 1 or 2, got {dup}")
        check_storage("pool", pool)
        if pool.dim() < 2:
            raise ValueError(f"pool: expected shape [N, ...], got {list(pool.shape)}")
        check_tensor("pairs", pairs, ["P", 2], pool, (torch.int64,))
        check_tensor("angles", angles, [len(pairs), "K"], pool, (torch.float32, torch.float64))
        least = MIN_SIN[pool.dtype] if min_sin is None else min_sin
        if not least >= 0:
            raise ValueError(f"min_sin: expected at least 0, got {min_sin}")
        values = dup * math.prod((*angles.shape, *pool.shape[1:]))
        if values >= 2**63:
            raise ValueError(
                f"angles: {len(pairs)} pairs of {angles.shape[1]} angles are {values} values, more "
                "than memory has addresses"
            )
        arguments = (pool, pairs, angles, norm, least, on_degenerate == "raise", dup)
        if out is None:
            z, gram, status = op(*arguments)
        else:
            copies = (2,) if dup == 2 else ()
            check_tensor("out", out, [*copies, *angles.shape, *pool.shape[1:]], pool)
            _check_out(out, pool, angles)
            gram, status = op_to(out, *arguments)
            z = out
        if on_degenerate == "noise":
            z = _noise_where(status, z, dup, generator, z is out)
        return Interpolated(z, gram, status)

    return interp


def _check_out(out: Tensor, pool: Tensor, angles: Tensor) -> None:
    if not out.is_contiguous():
        raise ValueError("out: expected a contiguous tensor")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (out, pool, angles)):
        raise NotImplementedError("out: has no gradient; leave it out, or use torch.no_grad()")


def _noise_where(
    status: Tensor, z: Tensor, dup: int, generator: torch.Generator | None, in_place: bool
) -> Tensor:
    """z with standard normal noise for the pairs whose status is not 0; the same in both copies."""
    pairs = status.nonzero().flatten()
    if len(pairs) == 0:
        return z
    shape = (len(pairs), *z.shape[dup:])
    noise = torch.randn(shape, generator=generator, device=z.device, dtype=torch.float32)
    noise = noise.to(z.dtype)
    copy = z.index_copy_ if in_place else z.index_copy
    return copy(dup - 1, pairs, torch.stack([noise, noise]) if dup == 2 else noise)


def phi_from_lambda(gram: Tensor, lam: Tensor) -> Tensor:
    """Angles from the paper's strengths: ``phi = lambda alpha``.

    Args:
        gram: [P, 3] float64, as `interp` gives it, with K = 0 if need be.
        lam: [P, K]; all of the circle is lambda in [0, 2 pi / alpha].

    Returns:
        phi [P, K] float64, radians.

    Raises:
        ValueError, TypeError: an argument is wrong; it is named.
    """
    check_tensor("gram", gram, ["P", 3], gram, (torch.float64,))
    check_tensor("lam", lam, [len(gram), "K"], gram, (torch.float32, torch.float64))
    return lam.double() * alpha_of(gram)[:, None]


def alpha_of(gram: Tensor) -> Tensor:
    """The angles [P] between the vectors of pairs in radians, float64, of gram [P, 3]."""
    cosine = gram[:, 2] / (gram[:, 0].sqrt() * gram[:, 1].sqrt())
    return torch.atan2(((1 - cosine) * (1 + cosine)).clamp_min(0).sqrt(), cosine)


def ddim_coefficients(
    alpha_cumprod_from: float | Sequence[float] | Tensor,
    alpha_cumprod_to: float | Sequence[float] | Tensor,
    prediction: Prediction = "epsilon",
    *,
    clipped: bool = False,
) -> Tensor:
    """Coefficients of a DDIM step (eta 0), for `ddim_affine_step`: towards image or noise.

    ``x' = sqrt(abar') x0 + sqrt(1 - abar') eps`` with x0 and eps from the sample and what the
    network predicts (Song et al. 2021, equation 12; Salimans and Ho 2022 for v): rows (k1, k2) of
    ``x' = k1 x + k2 e``.

    Args:
        alpha_cumprod_from, alpha_cumprod_to: abar where the sample is and where it goes, in (0, 1],
            one number or one a sample [B]. From the smaller to the larger removes noise.
        prediction: what the network predicts: "epsilon" or "v_prediction".
        clipped: for a step that clips x0: rows (m, n, p, q, r) of ``x0 = m x + n e`` and
            ``x' = p clip(x0) + q x + r e``.

    Returns:
        [1 or B, 2 or 5] float64.

    Raises:
        ValueError: an argument is wrong; it is named.
    """
    check_choice("prediction", prediction, PREDICTIONS)
    here, there = (
        torch.atleast_1d(torch.as_tensor(value, dtype=torch.float64))
        for value in (alpha_cumprod_from, alpha_cumprod_to)
    )
    for name, value in (("alpha_cumprod_from", here), ("alpha_cumprod_to", there)):
        if value.dim() != 1 or not bool(((value > 0) & (value <= 1)).all()):
            raise ValueError(f"{name}: expected numbers in (0, 1], got {value.tolist()}")
    root, noise = here.sqrt(), (1 - here).sqrt()
    root_to, noise_to = there.sqrt(), (1 - there).sqrt()
    zero, one = torch.zeros_like(root), torch.ones_like(root)
    if prediction == "epsilon":
        clean, eps = (1 / root, -noise / root), (zero, one)
    else:
        clean, eps = (root, -noise), (noise, root)
    q, r = noise_to * eps[0], noise_to * eps[1]
    if clipped:
        columns = torch.broadcast_tensors(*clean, root_to, q, r)
    else:
        columns = torch.broadcast_tensors(root_to * clean[0] + q, root_to * clean[1] + r)
    return torch.stack(columns, -1)


def make_ddim_affine_step(op: Callable[..., Any]) -> Callable[..., Tensor]:
    """`ddim_affine_step` over an op with the signature of `circle_ddim_affine_step`."""

    def ddim_affine_step(
        eps: Tensor,
        x: Tensor,
        coef: Tensor,
        *,
        guidance: float = 1.0,
        cfg: bool = False,
        clip: float | None = None,
        dup: int = 1,
    ) -> Tensor:
        """One DDIM step with classifier-free guidance, in one pass: denoising or inversion.

        ``x' = k1 x + k2 (u + guidance (c - u))``, in float32 with one rounding to the dtype of x.

        Args:
            eps: [B, ...] what the network predicts; with ``cfg`` [2 B, ...]: without the condition
                first. In the dtype of x.
            x: [B, ...] the samples: float32, bfloat16, float16 or float64.
            coef: [1 or B, 2] float64 of `ddim_coefficients`; [1 or B, 5] with ``clip``.
            guidance: of 1 the unconditional half is not read.
            clip: what x0 is clipped to, from both sides; None for no clipping.
            dup: 2 gives the result twice, one after the other: the network's next batch.

        Returns:
            [dup B, ...] in the dtype of x. Gradients flow to eps and x.

        Raises:
            ValueError, TypeError: an argument is wrong; it is named.
        """
        if dup not in (1, 2):
            raise ValueError(f"dup: expected 1 or 2, got {dup}")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip: expected a positive number or None, got {clip}")
        if not math.isfinite(guidance):
            raise ValueError(f"guidance: expected a finite number, got {guidance}")
        check_storage("x", x)
        if x.dim() < 1:
            raise ValueError("x: expected shape [B, ...], got []")
        batch = x.shape[0]
        check_tensor("eps", eps, [2 * batch if cfg else batch, *x.shape[1:]], x)
        check_tensor("coef", coef, ["B", 2 if clip is None else 5], x, (torch.float64,))
        if coef.shape[0] not in (1, batch):
            raise ValueError(f"coef: expected 1 or {batch} rows, got {coef.shape[0]}")
        result: Tensor = op(eps, x, coef, float(guidance), cfg, clip or 0.0, dup)
        return result

    return ddim_affine_step
