"""Moving weights in TRL's trainers.

TRL's GRPO and RLOO trainers score a batch in one method, over all processes, and multiply what it
gives by ``trainer.reward_weights``. `attach` steps in between: the weights are moved by the scores
and put there, so that a batch is composed by the weights it led to.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from pyext_plugins.reward_composition.weights import RewardWeights

KEY = "reward_weights"
NEEDED = ("_calculate_rewards", "_log_metric", "reward_func_names", "reward_weights")


class Trainer(Protocol):
    """What is needed of a trainer; TRL's `GRPOTrainer` and `RLOOTrainer` (1.16) have it."""

    reward_func_names: list[str]
    reward_weights: Tensor
    model: torch.nn.Module

    def add_callback(self, callback: TrainerCallback) -> None: ...


def attach(trainer: Trainer, weights: RewardWeights) -> None:
    """Have a trainer of TRL compose its rewards by weights that move; call it before ``train``.

    The weights move once for every generated batch, however many optimizer steps use it, by the
    rewards of all processes, and not in evaluation. They are logged as ``reward_weights/NAME``
    beside TRL's own ``rewards/NAME/mean``, which are unweighted. Checkpoints have their state in
    ``trainer_state.json``, and a training that goes on from one takes it from there.

    GRPO normalises within groups, so only the weights' ratios matter to it, and has the KL penalty
    in its loss; RLOO subtracts it from the composed reward, as the method's paper does, whose
    scale the weights keep, since their sum is 1 (TRL's default weights are 1 each).

    Args:
        trainer: `trl.GRPOTrainer`, `trl.RLOOTrainer`, or a subclass that scores as they do.
        weights: with the names of the trainer's reward functions, in their order.

    Raises:
        TypeError: the trainer does not score as these do.
        ValueError: other names; mode "min", which no weights can express; a trainer that has
            weights attached.
    """
    missing = [name for name in NEEDED if not hasattr(trainer, name)]
    if missing:
        raise TypeError(
            "trainer: expected a GRPOTrainer or RLOOTrainer of trl, "
            f"{type(trainer).__name__} has no {', '.join(missing)}"
        )
    if list(weights.names) != trainer.reward_func_names:
        raise ValueError(
            f"weights: expected the names {trainer.reward_func_names} of the trainer's reward "
            f"functions, got {list(weights.names)}"
        )
    if weights.mode == "min":
        raise ValueError("weights: mode 'min' takes another reward for each sample, has no weights")
    if "_calculate_rewards" in vars(trainer):
        raise ValueError("trainer: its scoring is replaced already, expected one without weights")
    calculate: Any = trainer._calculate_rewards  # type: ignore[attr-defined]
    log: Any = trainer._log_metric  # type: ignore[attr-defined]

    @functools.wraps(calculate)
    def calculate_rewards(*args: Any, **kwargs: Any) -> Tensor:
        scores: Tensor = calculate(*args, **kwargs)
        weights.update(scores, training=trainer.model.training, reduce=False)
        _install(trainer, weights)
        for name, weight in zip(weights.names, weights.weights.tolist(), strict=True):
            log(f"{KEY}/{name}", weight)
        return scores

    _install(trainer, weights)
    trainer._calculate_rewards = calculate_rewards  # type: ignore[attr-defined]
    trainer.add_callback(_callback(trainer, weights))


def _install(trainer: Trainer, weights: RewardWeights) -> None:
    trainer.reward_weights = (weights.weights / weights.scale).float()


def _callback(trainer: Trainer, weights: RewardWeights) -> TrainerCallback:
    """What carries the state to checkpoints and back.

    The class is made here since transformers, asked to restore callbacks, makes a new one without
    arguments.
    """

    class RewardWeightsCallback(TrainerCallback, ExportableState):
        def state(self) -> dict[str, Any]:
            return {"args": {}, "attributes": {}, KEY: weights.state_dict()}

        def on_train_begin(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            **kwargs: Any,
        ) -> None:
            states = cast(dict[str, Any], state.stateful_callbacks)
            # A checkpoint of a training without weights has no such entry, and saving needs one.
            saved = states.setdefault(type(self).__name__, self.state())
            weights.load_state_dict(saved[KEY])
            _install(trainer, weights)

    return RewardWeightsCallback()
