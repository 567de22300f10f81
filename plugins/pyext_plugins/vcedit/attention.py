"""Cross-attention maps of a diffusers U-Net: seen, and replaced."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor

SUFFIX = ".processor"


class AttentionMaps:
    """A context in which a U-Net's conditional cross-attention is recorded and can be replaced.

    Maps go by the name of their module (``...attn2``), not by the order of calls. Self-attention,
    larger maps and the other chunks of the batch run as they would without this. On leaving, the
    processors found are put back.

    Args:
        unet: anything with diffusers' ``attn_processors`` and ``set_attn_processor``.
        max_map_size: maps of more than this squared positions are let alone.
        chunk, chunks: the conditional samples are chunk number ``chunk`` of ``chunks`` equal ones
            along the batch. 1 of 2 is classifier-free guidance as Stable Diffusion pipelines batch
            it; 0 of 3 is InstructPix2Pix; 0 of 1 is no guidance.

    Raises:
        ValueError: there is no such chunk.
        NotImplementedError: a processor is neither AttnProcessor nor AttnProcessor2_0.

    Attributes:
        recorded: by module name, [V, heads, q, tokens], of the last forward pass; V is the
            chunk's size. Probabilities are recorded before they are replaced.
        substitutes: by module name, the same shapes; a module without one keeps its own.
    """

    def __init__(
        self, unet: Any, *, max_map_size: int = 32, chunk: int = 1, chunks: int = 2
    ) -> None:
        if not 0 <= chunk < chunks:
            raise ValueError(f"chunk: expected 0 to {chunks - 1}, got {chunk}")
        self.recorded: dict[str, Tensor] = {}
        self.substitutes: dict[str, Tensor] = {}
        self.max_positions, self.chunk, self.chunks = max_map_size**2, chunk, chunks
        self._unet = unet
        self._found = dict(unet.attn_processors)
        for name, processor in self._found.items():
            if type(processor) not in (AttnProcessor, AttnProcessor2_0):
                raise NotImplementedError(
                    f"{name}: expected AttnProcessor or AttnProcessor2_0, got "
                    f"{type(processor).__name__}; unet.set_default_attn_processor() sets one"
                )

    def __enter__(self) -> AttentionMaps:
        self._unet.set_attn_processor(
            {
                name: _Processor(self, name.removesuffix(SUFFIX), processor)
                for name, processor in self._found.items()
            }
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._unet.set_attn_processor(self._found)


class _Processor:
    """One module's attention."""

    def __init__(self, maps: AttentionMaps, name: str, plain: Any) -> None:
        self._maps, self._name, self._plain = maps, name, plain

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        positions = hidden_states.shape[1] if hidden_states.dim() == 3 else 0
        if encoder_hidden_states is None or not 0 < positions <= self._maps.max_positions:
            plain: Tensor = self._plain(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb
            )
            return plain
        batch, tokens = encoder_hidden_states.shape[:2]
        mask = attn.prepare_attention_mask(attention_mask, tokens, batch)
        if attn.norm_cross:
            encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)
        query, key, value = (
            attn.head_to_batch_dim(project(states))
            for project, states in (
                (attn.to_q, hidden_states),
                (attn.to_k, encoder_hidden_states),
                (attn.to_v, encoder_hidden_states),
            )
        )
        probabilities = attn.get_attention_scores(query, key, mask)
        probabilities = self._exchange(probabilities.unflatten(0, (batch, -1)))
        out: Tensor = attn.batch_to_head_dim(probabilities.flatten(0, 1) @ value)
        out = attn.to_out[1](attn.to_out[0](out))
        if attn.residual_connection:
            out = out + hidden_states
        out = out / attn.rescale_output_factor
        return out

    def _exchange(self, probabilities: Tensor) -> Tensor:
        """Record the conditional part of [batch, heads, q, tokens], and replace it if asked to."""
        if len(probabilities) % self._maps.chunks:
            raise ValueError(
                f"chunks: a batch of {len(probabilities)} has no {self._maps.chunks} equal chunks"
            )
        parts = list(probabilities.chunk(self._maps.chunks))
        own = parts[self._maps.chunk]
        self._maps.recorded[self._name] = own.detach()
        other = self._maps.substitutes.get(self._name)
        if other is None:
            return probabilities
        if other.shape != own.shape:
            raise ValueError(
                f"substitutes: {self._name}: expected shape {list(own.shape)}, got "
                f"{list(other.shape)}"
            )
        parts[self._maps.chunk] = other.to(own)
        return torch.cat(parts)
