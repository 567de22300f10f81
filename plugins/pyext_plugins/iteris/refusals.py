"""Adapters whose update is not the product of two factors, refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pyext.errors import UserError

SHOWN = 3  # modules named in a message

# Settings of peft's config that make the update something else than B A.
_SETTINGS = {
    "use_dora": "DoRA",
    "lora_bias": "a bias in B",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal factors",
    "kasa_config": "KaSA",
    "arrow_config": "Arrow routing",
    "monteclora_config": "MonteCLoRA",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
    "layer_replication": "replicated layers",
    "modules_to_save": "modules trained whole (modules_to_save)",
    "target_parameters": "parameters that are no module (target_parameters)",
    "trainable_token_indices": "trained embeddings (trainable_token_indices)",
}
# Ends of keys that tell the same.
_KEYS = {
    "lora_magnitude_vector": "DoRA",
    "lora_magnitude_vector.weight": "DoRA",
    "lora_embedding_A": "trained embeddings",
    "lora_embedding_B": "trained embeddings",
    "lora_B.bias": "a bias in B",
    "bias": "trained biases",
}
# Ways to start that leave the base as it is; the others take a part out of its weights.
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


def refuse_settings(folder: Path, config: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raise where a config of peft asks for more than B A beside the base's weights.

    Args:
        keys: of the weights, for the names of modules.

    Raises:
        UserError: it does; the message says what, and on which modules.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{folder}: expected an adapter of type LORA, got {kind!r}")
    modules = modules_of(keys)
    for setting, what in _SETTINGS.items():
        if config.get(setting):
            value = config[setting]
            named = value if isinstance(value, list) else modules
            raise UserError(_sentence(folder, what, named))
    if config.get("bias", "none") != "none":
        raise UserError(_sentence(folder, f"trained biases (bias={config['bias']!r})", modules))
    start = config.get("init_lora_weights", True)
    if start not in _STARTS:
        what = f"a start that changes the base's weights (init_lora_weights={start!r})"
        raise UserError(_sentence(folder, what, modules))


def refuse_keys(folder: Path, keys: Iterable[str]) -> None:
    """Raise for keys that are left over when all factors have been taken.

    Raises:
        UserError: there are such keys.
    """
    left = sorted(keys)
    if not left:
        return
    for end, what in _KEYS.items():
        found = [key for key in left if key.endswith(f".{end}")]
        if found:
            raise UserError(_sentence(folder, what, modules_of(found)))
    raise UserError(
        f"{folder}: expected factors lora_A and lora_B only, got {len(left)} more keys: "
        f"{listed(left)}"
    )


def modules_of(keys: Iterable[str]) -> list[str]:
    """The modules that keys of an adapter belong to, sorted."""
    found = set()
    for key in keys:
        path = key.removeprefix("base_model.model.")
        for end in (".lora_", ".weight", ".bias"):
            path = path.partition(end)[0]
        found.add(path)
    return sorted(found)


def listed(names: Iterable[object]) -> str:
    """A few of the names, and how many there are beside them."""
    own = [str(name) for name in names]
    more = f" and {len(own) - SHOWN} more" if len(own) > SHOWN else ""
    return ", ".join(own[:SHOWN]) + more


def _sentence(folder: Path, what: str, modules: Iterable[object]) -> str:
    return (
        f"{folder}: it has {what} on {listed(modules)}: its update is not B A, and cannot be merged"
    )
