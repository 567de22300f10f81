"""peft's own ways to merge, carried out by peft.

They read nothing but the factors, so they run on a skeleton of the base: its module names, and
weights that take no memory. An adapter's scale goes into its alpha, whatever it comes from: rank
stabilisation, which peft would let the merged adapter inherit, is off.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyext.errors import UserError
from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.peers.registry import Modules, Problem, peer
from pyext_plugins.iteris.peers.truncation import truncate
from pyext_plugins.iteris.tasks import Task

MERGED = "merged"
# peft's name of each, and what it does.
WAYS = {
    "linear": "A and B averaged apart from each other, by the square roots of the weights",
    "cat": "the weighted sum, factors side by side",
    "svd": "the weighted sum, cut by an SVD",
    "ties": "TIES on A and B apart from each other",
    "ties_svd": "TIES (Yadav et al. 2023) on the updates, cut by an SVD",
    "dare_linear": "DARE on A and B apart from each other, then their average",
    "dare_linear_svd": "DARE (Yu et al. 2024) on the updates, summed, cut by an SVD",
    "dare_ties": "DARE, then TIES, on A and B apart from each other",
    "dare_ties_svd": "DARE, then TIES, on the updates, cut by an SVD",
    "magnitude_prune": "the largest entries of A and B, averaged apart from each other",
    "magnitude_prune_svd": "the largest entries of the updates, summed, cut by an SVD",
}


def _register(way: str, summary: str) -> Callable[[Problem], Modules]:
    @peer(f"peft-{way.replace('_', '-')}", f"peft's {way}: {summary}")
    def merge(problem: Problem) -> Modules:
        return truncate(_merge(way, problem), problem.options.rank)

    return merge


for _way, _summary in WAYS.items():
    _register(_way, _summary)


def _merge(way: str, problem: Problem) -> Modules:
    tasks, options = problem.tasks, problem.options
    weights = options.weights_of(tasks)
    if "ties" in way:
        # TIES itself divides, by how many tasks agree on an entry: a weight of 1/N must be 1.
        weights = [weight * len(tasks) for weight in weights]
    names = [f"adapter{number}" for number in range(len(tasks))]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on what the skeleton is not
        torch.manual_seed(options.seed)
        model = _inject(tasks, names)
        rank = options.rank if way.endswith("svd") else None
        more = {} if way in ("linear", "cat", "svd") else {"density": options.density}
        try:
            model.add_weighted_adapter(names, weights, MERGED, way, svd_rank=rank, **more)
        except ValueError as error:
            raise UserError(f"peft-{way.replace('_', '-')}: {error}") from error
    return {name: _read(model.model.get_submodule(name)) for name in problem.modules}


def _inject(tasks: Sequence[Task], names: Sequence[str]) -> Any:
    """A LoraModel of peft on the skeleton, with the adapters of all tasks."""
    from peft import LoraConfig, LoraModel

    skeleton = _skeleton({name: up for each in tasks for name, up in each.updates.items()})
    configs = {
        name: LoraConfig(
            r=max(update.rank for update in task.updates.values()),
            lora_alpha=1,
            target_modules="|".join(map(re.escape, task.updates)),
            rank_pattern={_only(key): update.rank for key, update in task.updates.items()},
            alpha_pattern={
                _only(key): update.scale * update.rank for key, update in task.updates.items()
            },
        )
        for name, task in zip(names, tasks, strict=True)
    }
    model = LoraModel(skeleton, configs[names[0]], names[0])
    for name in names[1:]:
        # PeftModel's way to add one; LoraModel itself offers no other.
        model.peft_config[name] = configs[name]
        model.inject_adapter(model.model, name)
    for name, task in zip(names, tasks, strict=True):
        for key, update in task.updates.items():
            layer: Any = model.model.get_submodule(key)
            layer.lora_A[name].weight.data = update.a.float().clone()
            layer.lora_B[name].weight.data = update.b.float().clone()
    return model


def _only(module: str) -> str:
    """A pattern that fits this module and no other whose name ends alike."""
    return "^" + re.escape(module)


def _skeleton(updates: Mapping[str, LowRank]) -> nn.Module:
    """Modules of these names, linear ones of the updates' shapes, whose weights are one zero."""
    root = nn.Module()
    for name, update in updates.items():
        *folders, leaf = name.split(".")
        place = root
        for folder in folders:
            if folder not in dict(place.named_children()):
                place.add_module(folder, nn.Module())
            place = place.get_submodule(folder)
        linear = nn.Linear(1, 1, bias=False)
        linear.out_features, linear.in_features = update.shape
        zero: Tensor = torch.zeros(1, 1).expand(update.shape)
        linear.weight = nn.Parameter(zero, requires_grad=False)
        place.add_module(leaf, linear)
    return root


def _read(layer: Any) -> LowRank:
    """The merged factors of one module, without the rows that peft left at zero."""
    a, b = layer.lora_A[MERGED].weight.detach(), layer.lora_B[MERGED].weight.detach()
    used = (a != 0).any(1) & (b != 0).any(0)
    if not used.any():
        used[0] = True
    return LowRank(a[used].clone(), b[:, used].clone(), layer.scaling[MERGED])
