"""The base on disk: which of transformers' classes it is, its weights, and its tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from pyext.errors import UserError, did_you_mean, one_line
from pyext_plugins.iteris.adapters import Adapter
from pyext_plugins.iteris.linear import base_weight, is_linear
from pyext_plugins.iteris.refusals import listed

# peft's names of tasks, and the class of transformers that does each.
_TASKS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


class Base:
    """A base model in a folder that ``save_pretrained`` wrote.

    Args:
        folder: with config.json, the weights and the tokenizer.
        adapters: whose modules it must have.

    Raises:
        UserError: there is no such model, or it is not the adapters'.
    """

    def __init__(self, folder: Path, adapters: Sequence[Adapter]) -> None:
        from transformers import AutoConfig

        self.folder = folder
        if not (folder / "config.json").is_file():
            raise UserError(f"--base: expected a folder with config.json, got {folder}")
        try:
            self.config = AutoConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"--base: {folder} cannot be read: {one_line(error)}") from error
        self._class, self.skeleton = self._find_class(adapters)
        for adapter in adapters:
            self._check_shapes(adapter)

    def load(self, stream: Path | None = None) -> nn.Module:
        """The model with its weights, in evaluation mode.

        Args:
            stream: leave the weights in their files: each module reads its own when it runs, and
                drops them. A folder, for weights that transformers stores in another form.

        Raises:
            UserError: the weights cannot be read.
        """
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        options = {} if stream is None else {"device_map": {"": "disk"}, "offload_folder": stream}
        try:
            model = self._class.from_pretrained(
                self.folder, dtype="auto", local_files_only=True, **options
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"--base: {self.folder} cannot be read: {one_line(error)}") from error
        if stream is not None:
            return model.eval()  # type: ignore[no-any-return]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return model.to(device).eval()  # type: ignore[no-any-return]

    def tokenizer(self) -> Any:
        """The tokenizer beside the weights.

        Raises:
            UserError: there is none, or it has more tokens than the base.
        """
        from transformers import AutoTokenizer

        # Without files, transformers may make a tokenizer that knows no words.
        if not any((self.folder / name).is_file() for name in _TOKENIZERS):
            raise UserError(
                f"--base: expected a tokenizer in {self.folder}: one of {', '.join(_TOKENIZERS)}"
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"--base: {self.folder} has no tokenizer that can be read: {one_line(error)}"
            ) from error
        vocabulary = getattr(self.config, "vocab_size", None)
        if vocabulary is not None and len(tokenizer) > vocabulary:
            raise UserError(
                f"--base: the tokenizer in {self.folder} has {len(tokenizer)} tokens, the model "
                f"{vocabulary}"
            )
        return tokenizer

    @property
    def bytes(self) -> int:
        """Size of the weights in memory."""
        return sum(file.stat().st_size for file in self._weight_files())

    def digest(self) -> str:
        """SHA-256 of the config, and of names, sizes and times of the weights."""
        found = hashlib.sha256((self.folder / "config.json").read_bytes())
        for file in self._weight_files():
            stat = file.stat()
            found.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        return found.hexdigest()

    def _weight_files(self) -> Iterator[Path]:
        yield from sorted(self.folder.glob("*.safetensors"))

    def _find_class(self, adapters: Sequence[Adapter]) -> tuple[Any, nn.Module]:
        """The first class that has all modules of the adapters, and its model without weights."""
        import transformers

        wanted = {name for adapter in adapters for name in adapter.modules}
        lacking: list[str] | None = None
        for name in dict.fromkeys(self._class_names(adapters)):
            kind = getattr(transformers, name, None)
            own = getattr(kind, "config_class", None)
            if kind is None or (own is not None and not isinstance(self.config, own)):
                continue
            try:
                skeleton = self._skeleton(kind, name)
            except ValueError:  # the architecture has no model of this kind
                continue
            have = {name for name, _ in skeleton.named_modules()}
            if wanted <= have:
                return kind, skeleton
            if lacking is None:
                lacking, known = sorted(wanted - have), have
        if lacking is None:
            raise UserError(f"--base: transformers has no class for {self.folder}")
        owner = next(adapter for adapter in adapters if lacking[0] in adapter.modules)
        raise UserError(
            f"--adapter: {owner.folder}: the base {self.folder} has no module {listed(lacking)}."
            f"{did_you_mean(lacking[0], known)} Is it of another base"
            f"{f', {owner.base}' if owner.base else ''}?"
        )

    def _class_names(self, adapters: Sequence[Adapter]) -> Iterator[str]:
        for adapter in adapters:
            mapping = adapter.config.get("auto_mapping") or {}
            if mapping.get("base_model_class"):
                yield mapping["base_model_class"]
            if adapter.config.get("task_type") in _TASKS:
                yield _TASKS[adapter.config["task_type"]]
        yield from getattr(self.config, "architectures", None) or ()
        yield "AutoModel"

    def _skeleton(self, kind: Any, name: str) -> nn.Module:
        with torch.device("meta"):
            make = kind.from_config if name.startswith("Auto") else kind
            return make(self.config)  # type: ignore[no-any-return]

    def _check_shapes(self, adapter: Adapter) -> None:
        modules = dict(self.skeleton.named_modules())
        for name, update in adapter.modules.items():
            module = modules[name]
            where = f"--adapter: {adapter.folder}: {name}"
            if not is_linear(module):
                raise UserError(f"{where}: expected a linear module, got {type(module).__name__}")
            shape = tuple(base_weight(module).shape)
            if update.shape != shape:
                raise UserError(
                    f"{where}: its update is {list(update.shape)}, the weight of {self.folder} "
                    f"{list(shape)}: it is of another base"
                )
