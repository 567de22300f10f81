"""The weights of several rewards over a training: kept, moved once a batch, saved and restored."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pyext_plugins.reward_composition import checks, states
from pyext_plugins.reward_composition.batch import Batch, gather
from pyext_plugins.reward_composition.compose import (
    Composition,
    Mode,
    Order,
    Scale,
    compose_rewards,
    equal_shares,
    mirror_step,
)
from pyext_plugins.reward_composition.moments import Moments

Weighting = Literal["mirror", "softmax", "fixed", "uniform", "min"]
OtherNames = Literal["refuse", "renormalize"]


class RewardWeights:
    """Weights that sum to 1 and move after every batch, towards the rewards that are lowest.

    The closed form of "mirror" is a softmax of what has been earned: ``log w_i = const - lam
    sum_t means_i(t)``. History does not fade, a constant added to all rewards changes nothing, and
    a reward of twice the unit pulls twice as much. Where weights settle inside the simplex all
    mean rewards are equal. ``lam`` must be small against the speed at which the policy learns:
    policy and weights chase each other, and too large a step makes them go round in circles.

    Args:
        names: of the rewards, in the order of their columns.
        lam: step, one number or one for each reward; may be set during a training. It is a step
            an update, however large the batch.
        mode: "mirror"; "softmax" of the last means alone; "fixed"; "uniform", fixed at 1/n;
            "min", the least reward of each sample, which `compose` takes.
        initial: weights to start from, positive, of sum 1; 1/n if None.
        bias, floor, cap: as in `compose.mirror_step`.
        smoothing: "ema" puts the exponential moving average of the means in the exponent.
        decay: of that average: what of it is left after a step.
        scaling: "running" divides every reward by the standard deviation of all its values so
            far, in the exponent and in `compose`, for rewards of different units. This changes
            what the weights settle at: equal means in units of these deviations. A reward
            without variance so far keeps its weight.
        patience: updates in which a reward may stay at one value before a warning.

    Raises:
        ValueError, TypeError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        names: Sequence[str],
        lam: float | Sequence[float] = 0.2,
        mode: Weighting = "mirror",
        *,
        initial: Sequence[float] | None = None,
        bias: Sequence[float] | None = None,
        floor: float = 0.0,
        cap: float = 1.0,
        smoothing: Literal["none", "ema"] = "none",
        decay: float = 0.9,
        scaling: Literal["none", "running"] = "none",
        patience: int = 50,
    ) -> None:
        self.names = checks.names(names)
        count = len(self.names)
        self.lam = lam
        checks.choice("mode", mode, ("mirror", "softmax", "fixed", "uniform", "min"))
        checks.choice("smoothing", smoothing, ("none", "ema"))
        checks.choice("scaling", scaling, ("none", "running"))
        checks.bounds(floor, cap, count)
        if not 0 <= decay < 1:
            raise ValueError(f"decay: expected at least 0 and below 1, got {decay}")
        if initial is not None and mode == "uniform":
            raise ValueError("initial: mode 'uniform' has none of its own, expected None")
        self.mode, self.floor, self.cap = mode, floor, cap
        self.smoothing, self.decay, self.scaling = smoothing, decay, scaling
        self.patience = checks.whole("patience", patience)
        self.bias = None if bias is None else checks.numbers("bias", bias, count)
        self.step = 0
        self.means = torch.full((count,), torch.nan, dtype=torch.float64)
        self._log_w = checks.shares("initial", initial, count).log()
        self._smoothed = self.means.clone()
        self._moments = Moments(count)
        self._constant = self.means.clone()  # the one value of the last batches, NaN without
        self._constant_steps = [0] * count
        self._said_empty: set[str] = set()

    @property
    def lam(self) -> float | tuple[float, ...]:
        """The step, or a step for each reward."""
        return self._lam

    @lam.setter
    def lam(self, value: float | Sequence[float]) -> None:
        steps: list[float] = checks.step_sizes(value, len(self.names)).tolist()
        self._lam = tuple(steps) if isinstance(value, Sequence | Tensor) else steps[0]

    @property
    def log_w(self) -> Tensor:
        """[n], float64, on the CPU."""
        return self._log_w.clone()

    @property
    def weights(self) -> Tensor:
        """[n], float64, on the CPU, of sum 1."""
        return self._log_w.exp()

    @property
    def scale(self) -> Tensor:
        """[n], float64: what rewards are divided by before they are weighted."""
        deviation = self._moments.deviation()
        usable = (deviation > 0) & (self.scaling == "running")
        return torch.where(usable, deviation, 1.0)

    def update(self, rewards: Tensor, *, training: bool = True, reduce: bool = True) -> Tensor:
        """Move the weights by the rewards of a batch; call it once a batch.

        A reward without a value in the batch keeps its weight. Where ``torch.distributed`` is
        initialised, sums and counts are reduced over all processes, so that all of them hold the
        same weights; every process must call it, with a share of the batch of one row at least.

        Args:
            rewards: [B, n], NaN where a reward does not apply. Under NCCL on the GPU.
            training: False leaves everything as it is, for evaluation.
            reduce: False where the rewards are those of all processes already.

        Returns:
            The weights, as `weights`.

        Raises:
            ValueError, TypeError: another shape or type, or an infinity; on every process.

        Warns:
            UserWarning: once, that a reward had no value in a batch; and that a reward has stayed
            at one value for ``patience`` updates.
        """
        checks.matrix("rewards", rewards, len(self.names))
        if not training:
            return self.weights
        batch = gather(rewards, self.names, reduce, squares=self.scaling == "running")
        self._say_empty(batch)
        self._watch_constant(batch)
        self.step += 1
        self.means = batch.means
        if self.scaling == "running":
            self._moments.add(batch)
        if self.mode in ("mirror", "softmax"):
            self._move(self._exponent_means(batch))
        return self.weights

    def compose(
        self,
        rewards: Tensor,
        *,
        group: int | None = None,
        order: Order = "sum_then_normalize",
        scale: Scale = "group",
        eps: float = 1e-4,
        training: bool = True,
        reduce: bool = True,
    ) -> Composition:
        """`update`, and then `compose.compose_rewards` of the same rewards by the new weights.

        Means and standard deviations of advantages are those of the rewards given here; of several
        processes, each has its own.
        """
        self.update(rewards, training=training, reduce=reduce)
        mode: Mode = "min" if self.mode == "min" else "fixed"
        return compose_rewards(
            rewards / self.scale.to(rewards),
            self._log_w.to(rewards.device),
            group=group,
            mode=mode,
            order=order,
            scale=scale,
            eps=eps,
        )

    def state_dict(self) -> dict[str, Any]:
        """State and settings, of JSON's types only."""
        return {
            "names": list(self.names),
            "mode": self.mode,
            "lambda": list(self.lam) if isinstance(self.lam, tuple) else self.lam,
            "step": self.step,
            "log_w": self._log_w.tolist(),
            "bias": None if self.bias is None else self.bias.tolist(),
            "floor": self.floor,
            "cap": self.cap,
            "smoothing": self.smoothing,
            "decay": self.decay,
            "scaling": self.scaling,
            "patience": self.patience,
            "means": states.to_list(self.means),
            "smoothed": states.to_list(self._smoothed),
            "moments": self._moments.state(),
            "constant": states.to_list(self._constant),
            "constant_steps": list(self._constant_steps),
        }

    def load_state_dict(self, state: Mapping[str, Any], other_names: OtherNames = "refuse") -> None:
        """Go on from a state: step, weights, lambda and all that was kept of earlier batches.

        The object's other settings stay; mode, smoothing and scaling must be those of the state.

        Args:
            state: what `state_dict` gave, or `states.read` read. Rewards in another order are put
                in the object's.
            other_names: what to do where the state has other rewards. "renormalize": those of
                both keep their weights relative to each other, each that is new begins with 1/n,
                those that are gone are left out; lambda is the object's.

        Raises:
            ValueError: the state is not whole, of other settings, or of other rewards and
                ``other_names`` is "refuse". The object is as before.
        """
        checks.choice("other_names", other_names, ("refuse", "renormalize"))
        states.check(state)
        for setting in ("mode", "smoothing", "scaling"):
            if state[setting] != getattr(self, setting):
                raise ValueError(
                    f"state: expected {setting} {getattr(self, setting)!r}, got {state[setting]!r}"
                )
        there = states.places(self.names, state["names"], other_names)
        kept = [number for number, place in enumerate(there) if place is not None]
        source = [place for place in there if place is not None]
        if len(source) == len(self.names) == len(state["names"]):
            lam = state["lambda"]
            self.lam = [lam[place] for place in source] if isinstance(lam, list) else lam
        self._log_w = states.mixed(torch.tensor(state["log_w"], dtype=torch.float64), there)
        self.step = state["step"]
        for name, own in (
            ("means", self.means),
            ("smoothed", self._smoothed),
            ("constant", self._constant),
        ):
            own.fill_(torch.nan)
            own[kept] = states.from_list(state[name])[source]
        self._moments = Moments(len(self.names))
        self._moments.take(state["moments"], kept, source)
        self._constant_steps = [
            0 if place is None else state["constant_steps"][place] for place in there
        ]

    def save(self, path: Path | str) -> None:
        """Write `state_dict` as JSON; the file appears whole or not at all."""
        states.write(Path(path), self.state_dict())

    @classmethod
    def load(cls, path: Path | str) -> RewardWeights:
        """The object that `save` wrote, with its settings.

        Raises:
            ValueError: there is no such file, or it is not one of these.
        """
        state = states.read(Path(path))
        settings = ("bias", "floor", "cap", "smoothing", "decay", "scaling", "patience")
        own = {name: state[name] for name in settings}
        try:
            found = cls(state["names"], state["lambda"], state["mode"], **own)
            found.load_state_dict(state)
        except (TypeError, ValueError) as error:
            raise ValueError(f"path: {path}: {error}") from error
        return found

    def _exponent_means(self, batch: Batch) -> Tensor:
        """What stands in the exponent, NaN for the rewards that keep their weights."""
        means = batch.means
        if self.scaling == "running":
            deviation = self._moments.deviation()
            means = torch.where(deviation > 0, means / deviation, torch.nan)
        if self.smoothing == "none":
            return means
        first = self._smoothed.isnan()
        mixed = self.decay * self._smoothed + (1 - self.decay) * means
        smoothed = torch.where(first, means, mixed)
        self._smoothed = torch.where(means.isnan(), self._smoothed, smoothed)
        return smoothed

    def _move(self, means: Tensor) -> None:
        start = self._log_w
        if self.mode == "softmax":
            start = equal_shares(start, ~means.isnan())
        self._log_w = mirror_step(means, start, self.lam, self.bias, self.floor, self.cap)

    def _say_empty(self, batch: Batch) -> None:
        for name, count in zip(self.names, batch.counts.tolist(), strict=True):
            if count == 0 and name not in self._said_empty:
                self._said_empty.add(name)
                warnings.warn(
                    f"reward {name!r} has no value in a batch (update {self.step + 1}); its weight "
                    "stays as it is then. This is said once.",
                    stacklevel=3,
                )

    def _watch_constant(self, batch: Batch) -> None:
        for number, name in enumerate(self.names):
            if batch.counts[number] == 0:
                continue
            low, high = float(batch.low[number]), float(batch.high[number])
            same = low == high == float(self._constant[number])
            self._constant_steps[number] = self._constant_steps[number] + 1 if same else 1
            self._constant[number] = low if low == high else torch.nan
            if low == high and self._constant_steps[number] == self.patience:
                warnings.warn(
                    f"reward {name!r} has been {low:g} for all samples of {self.patience} updates; "
                    "a reward that cannot rise draws all weight if it is the lowest",
                    stacklevel=3,
                )
