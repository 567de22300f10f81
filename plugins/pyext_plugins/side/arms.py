"""Ways to fine-tune one encoder, all under the same head: side networks and what they stand beside.

The head is a linear map of the mean over the tokens that count.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyext.errors import UserError
from pyext_plugins.side.config import CONFIGS, SideConfig
from pyext_plugins.side.model import SideModel, hidden_size

COMPARED = ("probe", "lora", "full")
LORA_RANK = 8
# AdamW's largest step size. For the arms compared with: what did them good in short trainings.
STEP_SIZES = {"unipt": 5e-4, "sherl": 5e-4, "lst": 5e-4, "probe": 1e-2, "lora": 2e-3, "full": 5e-5}


class Frozen(nn.Module):
    """An encoder that is neither trained nor kept for a backward pass."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def forward(self, **inputs: Any) -> Any:
        return self.encoder(**inputs)


class Classifier(nn.Module):
    """An encoder under a linear head.

    Args:
        encoder: gives an output with ``last_hidden_state`` [B, N, E].
        width: E.
        classes: how many labels.
    """

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)

    def forward(self, inputs: Mapping[str, Tensor], taps: Sequence[Tensor] | None = None) -> Tensor:
        """Logits [B, classes]; ``taps`` as `SideModel` takes them."""
        more = {} if taps is None else {"taps": taps}
        hidden: Tensor = self.encoder(**inputs, **more).last_hidden_state
        counts = inputs["attention_mask"].to(hidden.dtype).unsqueeze(-1)
        return cast(Tensor, self.head((hidden * counts).sum(1) / counts.sum(1)))


def load_encoder(path: Path) -> tuple[nn.Module, Any]:
    """The encoder in a local folder, in float32, and its tokenizer; nothing is fetched.

    Of an encoder-decoder the encoder is taken.

    Raises:
        UserError: the folder holds none.
    """
    if not path.is_dir():
        raise UserError(f"--model: expected a folder with a transformers model, got {path}")
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        kind: Any = AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel
        encoder = kind.from_pretrained(path, local_files_only=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--model: {path} cannot be loaded: {reason}") from error
    if tokenizer.pad_token is None:  # any token does: those that fill up do not count
        tokenizer.pad_token = tokenizer.eos_token
    return encoder, tokenizer


def longest(encoder: nn.Module, tokenizer: Any) -> int:
    """How many tokens of a text the encoder can read."""
    places = getattr(cast(Any, encoder).config, "max_position_embeddings", None)
    known = [tokenizer.model_max_length, *([] if places is None else [places])]
    return int(min(known))


def build(
    arm: str, encoder: nn.Module, classes: int, seed: int, config: SideConfig | None = None
) -> Classifier:
    """The model of one arm. The encoder becomes part of it, and is changed.

    Args:
        arm: "unipt", "sherl" or "lst" (with their config), "probe", "lora" or "full".
        seed: of what starts at random.

    Raises:
        UserError: the config does not fit the encoder.
    """
    width = hidden_size(encoder)
    torch.manual_seed(seed)
    if arm in CONFIGS:
        assert config is not None
        try:
            adapted: nn.Module = SideModel(encoder, config)
        except ValueError as error:
            raise UserError(f"{arm}: {error}") from error
    elif arm == "lora":
        adapted = _lora(encoder)
    else:
        adapted = Frozen(encoder) if arm == "probe" else encoder
    return Classifier(adapted, width, classes)


def _lora(encoder: nn.Module) -> nn.Module:
    """LoRA on the matrices that peft takes for this kind of model, or on all it does not know."""
    from peft import LoraConfig, get_peft_model
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as known

    kind = cast(Any, encoder).config.model_type
    targets = None if kind in known else "all-linear"
    config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=targets)
    with warnings.catch_warnings():
        # peft asks transformers for something under its old name.
        warnings.simplefilter("ignore", FutureWarning)
        return cast(nn.Module, get_peft_model(cast(Any, encoder), config))
