"""One reward out of several, and the step of their weights: pure functions of tensors.

`mirror_step` moves the weights, `compose_rewards` does all that stands between the scores of a
batch and the advantages of an RL algorithm. No gradient flows through either.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyext_plugins.reward_composition import checks

Mode = Literal["mirror", "softmax", "fixed", "min"]
Order = Literal["sum_then_normalize", "normalize_then_sum"]
Scale = Literal["group", "batch", "none"]


@dataclass(frozen=True)
class Composition:
    """What `compose_rewards` makes of a batch.

    Args:
        reward: [B], float32 or as the rewards; NaN where no reward applies.
        advantage: [B], of the same type; 0 where no reward applies.
        log_w: [n], the weights that composed it, of the type that came in.
        stats: [n, 4], float64: mean, standard deviation, least and count of each reward's values.
            Without values the first three are NaN, of one value the standard deviation is.
    """

    reward: Tensor
    advantage: Tensor
    log_w: Tensor
    stats: Tensor


@torch.no_grad()
def mirror_step(
    means: Tensor,
    log_w: Tensor,
    lam: float | Sequence[float] | Tensor,
    bias: Tensor | None = None,
    floor: float = 0.0,
    cap: float = 1.0,
) -> Tensor:
    """One step of mirror descent on the simplex: ``w_i <- w_i exp(-lam_i means_i + bias_i) / Z``.

    It is ``argmin_w <w, lam means> + KL(w || w_old)``: the lower a reward, the more its weight
    gains. Rewards with a NaN mean (no sample had one) keep their weights, the others share what
    they had. Then weights above ``cap`` are cut, and what is cut is shared in proportion among the
    others; then ``w <- (1 - n floor) w + floor``, which pulls to equal weights at every step. A
    step of zeros, without floor and cap, gives the weights back bit for bit.

    Args:
        means: [n], float; mean of each reward over the batch.
        log_w: [n], float32 or float64, logarithms of weights that sum to 1.
        lam: step size, or one for each reward.
        bias: [n], added in the exponent.
        floor: least weight, below 1/n.
        cap: greatest weight, above 1/n, or 1 for none.

    Returns:
        The new log_w.

    Raises:
        ValueError, TypeError: a value, shape, type or device is not as said; the argument is named.

    Source: Li et al. 2024 (EMNLP, 10122-10140), its formula as others report it: the paper was not
    at hand. That it is mirror descent is derived, not taken over.
    """
    count = checks.log_weights(log_w)
    checks.all_finite("log_w", log_w)  # a weight of 0 would stay there
    checks.vector("means", means, log_w)
    checks.no_infinity("means", means)
    steps = checks.step_sizes(lam, count).to(log_w.device)
    checks.bounds(floor, cap, count)
    exponent = -steps * means.double()
    if bias is not None:
        checks.vector("bias", bias, log_w)
        checks.all_finite("bias", bias)
        exponent = exponent + bias.double()
    return _moved(log_w, exponent, floor, cap)


def _moved(log_w: Tensor, exponent: Tensor, floor: float, cap: float) -> Tensor:
    """Weights times the exponentials of ``exponent`` [n]; kept where that is NaN."""
    there = ~exponent.isnan()
    bounded = floor > 0 or cap < 1
    if not there.any() or not (bounded or exponent[there].any()):
        return log_w.clone()
    old = log_w.double()
    mass = torch.zeros_like(old[0]) if there.all() else old[there].logsumexp(0)
    new = (old + exponent)[there]
    new = new - new.logsumexp(0) + mass
    if bounded:
        new = _bounded(new.exp(), mass.exp(), floor, cap).log()
    result = old.clone()
    result[there] = new
    return result.to(log_w.dtype)


def _bounded(w: Tensor, mass: Tensor, floor: float, cap: float) -> Tensor:
    """Weights [m] of a mass put between floor and cap, as far as the mass allows."""
    equal = mass / len(w)
    low, high = equal.clamp(max=floor), equal.clamp(min=cap)
    w = w.clamp(min=torch.finfo(w.dtype).tiny)  # what rounded to 0 has a share all the same
    over = torch.zeros_like(w, dtype=torch.bool)
    # Sharing out what was cut may lift another one above the cap, so at most m rounds.
    while (w > high).any() and not over.all():
        over = over | (w > high)
        rest = mass - high * over.sum()
        w = torch.where(over, high, w * rest / w[~over].sum())
    return (1 - len(w) * low / mass) * w + low


@torch.no_grad()
def compose_rewards(
    r: Tensor,
    log_w: Tensor,
    lam: float | Sequence[float] | Tensor = 0.0,
    bias: Tensor | None = None,
    floor: float = 0.0,
    group: int | None = None,
    mode: Mode = "mirror",
    order: Order = "sum_then_normalize",
    scale: Scale = "group",
    eps: float = 1e-4,
    valid: Tensor | None = None,
) -> Composition:
    """Move the weights by a batch of rewards, compose these, and make advantages of them.

    The arithmetic of orders and scales, and of NaN, is that of TRL's GRPO trainer (1.16).

    Args:
        r: [B, n], float; NaN where a reward does not apply to a sample. Where none applies the
            composed reward is NaN and the advantage 0.
        log_w, lam, bias, floor: as in `mirror_step`.
        group: completions of each prompt, which lie beside each other; None for the whole batch.
        mode: "mirror" moves the weights by the batch's means and then sums, ``sum_i w_i r_i``;
            "softmax" does so with ``w = softmax(-lam means + bias)``, without memory; "fixed"
            leaves the weights; "min" takes the least reward of each sample, whatever the weights.
        order: "sum_then_normalize" subtracts the group's mean from the composed rewards;
            "normalize_then_sum" composes rewards of which each was standardised within its group
            (GDPO), and standardises the result over the batch.
        scale: of the first order: divide by the standard deviation of the "group", the "batch", or
            not ("none").
        eps: added to standard deviations.
        valid: [B, n], bool; False is as NaN.

    Raises:
        ValueError, TypeError: as `mirror_step`, and for an infinite reward, whose row is named.

    Warns:
        UserWarning: a reward has no value in the batch, and keeps its weight.

    Source: Li et al. 2024; Liu et al. 2026 (GDPO, arXiv 2601.05242) for the second order.
    """
    count = checks.log_weights(log_w)
    r = checks.rewards(r, count, log_w.device, valid)
    checks.choice("mode", mode, ("mirror", "softmax", "fixed", "min"))
    checks.choice("order", order, ("sum_then_normalize", "normalize_then_sum"))
    checks.choice("scale", scale, ("group", "batch", "none"))
    checks.eps(eps)
    size = checks.group(group, len(r), order == "normalize_then_sum" or scale != "none")
    stats = statistics(r)
    if mode in ("mirror", "softmax"):
        _warn_of_empty(stats)
        start = log_w if mode == "mirror" else equal_shares(log_w, stats[:, 3] > 0)
        log_w = mirror_step(stats[:, 0], start, lam, bias, floor)
    grouped = r.view(-1, size, count)
    if order == "normalize_then_sum":
        grouped = (grouped - grouped.nanmean(1, keepdim=True)) / (_std(grouped, 1) + eps)
    reward = _combine(grouped.reshape(-1, count), r, log_w, mode)
    if order == "normalize_then_sum":
        advantage = (reward - reward.nanmean()) / (_std(reward, 0) + eps)
    else:
        grouped = reward.view(-1, size)
        advantage = (grouped - grouped.nanmean(1, keepdim=True)).view(-1)
        if scale == "group":
            advantage = advantage / (_std(grouped, 1) + eps).expand_as(grouped).reshape(-1)
        elif scale == "batch":
            advantage = advantage / (_std(reward, 0) + eps)
    return Composition(reward, advantage.nan_to_num(nan=0.0), log_w, stats)


def statistics(r: Tensor) -> Tensor:
    """Mean, standard deviation (n - 1), least and count of the values of r [B, n]; [n, 4]."""
    r = r.double()
    missing = r.isnan()
    least = r.masked_fill(missing, torch.inf).amin(0)
    number = (~missing).sum(0)
    return torch.stack(
        (
            r.nanmean(0),
            _std(r, 0)[0],
            least.masked_fill(number == 0, torch.nan),
            number.double(),
        ),
        1,
    )


def _std(x: Tensor, dim: int) -> Tensor:
    """Standard deviation (n - 1) of the values that are not NaN; NaN of a single one."""
    number = (~x.isnan()).sum(dim, keepdim=True)
    square = (x - x.nanmean(dim, keepdim=True)).square().nansum(dim, keepdim=True)
    return (square / (number - 1).clamp(min=0)).sqrt()


def _combine(values: Tensor, r: Tensor, log_w: Tensor, mode: Mode) -> Tensor:
    """Weighted sum, or least, of values [B, n]; NaN where all rewards r are."""
    if mode == "min":
        combined = values.nan_to_num(nan=torch.inf).amin(1)
        return combined.masked_fill(values.isnan().all(1), torch.nan)
    combined = (values * log_w.exp().to(values.dtype)).nansum(1)
    return combined.masked_fill(r.isnan().all(1), torch.nan)


def equal_shares(log_w: Tensor, there: Tensor) -> Tensor:
    """Equal shares, for the rewards that are there, of what these have together; [n]."""
    if not there.any():
        return log_w
    old = log_w.double()
    share = old[there].logsumexp(0) - there.sum().double().log()
    return torch.where(there, share, old).to(log_w.dtype)


def _warn_of_empty(stats: Tensor) -> None:
    empty = (stats[:, 3] == 0).nonzero().flatten().tolist()
    if empty:
        columns = ", ".join(str(column) for column in empty)
        warnings.warn(
            f"r: no sample has a value of reward {columns}; its weight stays as it is",
            stacklevel=4,
        )
