"""The graph `embed`: the prompt as the decoder takes it."""

from __future__ import annotations

from torch import Tensor, nn

from foveate.exporter.decoder import TextDecoder


class Embed(nn.Module):
    """Token embeddings with the kept visual tokens in their places."""

    def __init__(self, language_model: TextDecoder) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(self, input_ids: Tensor, visual_embeds: Tensor, keep_indices: Tensor, placeholder_indices: Tensor) -> Tensor:
        embeds = self.language_model.embed_tokens(input_ids)
        flat = embeds.flatten(0, 1).index_put((placeholder_indices,), visual_embeds.index_select(0, keep_indices))
        return flat.view_as(embeds)
