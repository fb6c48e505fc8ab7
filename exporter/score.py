"""The graph `score`: which visual tokens matter to the instruction."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from foveate.exporter.decoder import DecoderLayer, TextDecoder
from foveate.exporter.scorer.features import FirstLayer
from foveate.exporter.scorer.network import Scorer


class Score(nn.Module):
    """Layer-0 attention of the instruction rows to the visual tokens, made into scores by a scorer.

    Args:
        language_model: the decoder, of which the query and key of layer 0 are used.
        scorer: the trained network; without one the scores are the attention.
    """

    def __init__(self, language_model: TextDecoder, scorer: Scorer | None) -> None:
        super().__init__()
        self.language_model = language_model
        self.scorer = scorer

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        visual_indices: Tensor,
        instruction_indices: Tensor,
        neighbour_indices: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scores `[visual_tokens]`, and the attention `[visual_tokens]`, mean over heads and instruction rows."""
        layer = cast(DecoderLayer, self.language_model.layers[0])
        angles = self.language_model.angles(position_ids)
        x = layer.input_layernorm(inputs_embeds)
        query = layer.self_attn.query(x.index_select(0, instruction_indices), angles.index_select(0, instruction_indices))
        logits = _attention_logits(query, layer.self_attn.key(x, angles))
        visible = torch.arange(x.shape[0]) <= instruction_indices[:, None]
        attention = torch.softmax(logits.masked_fill(~visible, torch.finfo(logits.dtype).min), dim=-1)
        attention = attention.index_select(2, visual_indices)
        mean = attention.mean(dim=(0, 1))
        if self.scorer is None:
            return mean, mean.clone()
        visual_embeds = inputs_embeds.index_select(0, visual_indices)
        first = FirstLayer(attention, visual_embeds, inputs_embeds.index_select(0, instruction_indices))
        return self.scorer(first, neighbour_indices), mean


def _attention_logits(query: Tensor, key: Tensor) -> Tensor:
    """Scaled products `[heads, rows, tokens]`; a group of consecutive heads shares a key head, which is not repeated."""
    heads, head_dim = query.shape[1:]
    tokens, kv_heads = key.shape[:2]
    grouped = query.transpose(0, 1).reshape(kv_heads, -1, head_dim)
    logits = grouped @ key.permute(1, 2, 0) * head_dim**-0.5
    return logits.reshape(heads, -1, tokens)
