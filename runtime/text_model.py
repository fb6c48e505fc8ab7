"""Token ids and visual embeddings in, logits out: the `embed` graph and a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foveate.engines import Array, Decoder, KVCache, NextTokens, Session
from foveate.runtime.batch import Batch
from foveate.runtime.types import Layout


class TextModel:
    """What embeds tokens, and the decoder that reads them.

    Args:
        embed: the graph `embed`.
        decoder: the driver of the decoder's graphs.
        position_axes: of the decoder.

    Attributes:
        decoder: as given.
    """

    def __init__(self, embed: Session, decoder: Decoder, position_axes: int) -> None:
        self.decoder = decoder
        self._embed = embed
        self._position_axes = position_axes
        visual_embeds = next(tensor for tensor in embed.spec.inputs if tensor.name == "visual_embeds")
        self._visual_dtype, hidden_size = visual_embeds.dtype, visual_embeds.shape[-1]
        self.no_visual_embeds = embed.memory.empty((0, int(hidden_size)), self._visual_dtype)
        no_indices = np.empty(0, np.int64)
        self._no_visuals: dict[str, Any] = {
            "visual_embeds": self.no_visual_embeds,
            "keep_indices": no_indices,
            "placeholder_indices": no_indices,
        }

    def bring(self, visual_embeds: Array) -> Array:
        """Visual embeddings in the memory and dtype of the `embed` graph; a selector may have made new ones on the host."""
        return self._embed.memory.asarray(visual_embeds, self._visual_dtype)

    def pick(self, visual_embeds: Sequence[Array], rows: np.ndarray) -> Array:
        """`[rows, hidden_size]` of several arrays, one behind the other; the `embed` graph moves them, where it runs.

        Args:
            visual_embeds: as `bring` gives them.
            rows: int64, in any order.
        """
        joined = self._embed.memory.concatenate(visual_embeds)
        if np.array_equal(rows, np.arange(len(joined))):
            return joined
        feeds = {
            "input_ids": np.zeros((1, len(rows)), np.int64),  # none of them stays
            "visual_embeds": joined,
            "keep_indices": rows,
            "placeholder_indices": np.arange(len(rows)),
        }
        embeds: Array = self._embed.run(feeds)["inputs_embeds"][0]
        return embeds

    def embed(self, batch: Batch) -> Array:
        """`inputs_embeds [batch, sequence, hidden_size]` of pruned prompts."""
        feeds = {
            "input_ids": batch.input_ids,
            "visual_embeds": self._embed.memory.concatenate(batch.visual_embeds),
            "keep_indices": batch.keep_indices,
            "placeholder_indices": batch.placeholder_indices,
        }
        return self._embed.run(feeds)["inputs_embeds"]

    def embed_unpruned(self, layout: Layout, visual_embeds: Array) -> Array:
        """`inputs_embeds [total_tokens, hidden_size]` of a prompt with all its visual tokens."""
        feeds = {
            "input_ids": layout.input_ids[None],
            "visual_embeds": visual_embeds,
            "keep_indices": np.arange(len(layout.visual_indices)),
            "placeholder_indices": layout.visual_indices,
        }
        embeds: Array = self._embed.run(feeds)["inputs_embeds"][0]
        return embeds

    def embed_tokens(self, input_ids: np.ndarray) -> np.ndarray:
        """Text embeddings `[tokens, hidden_size]` float32 of `input_ids [tokens]` int64."""
        embeds = self._embed.run({"input_ids": input_ids[None], **self._no_visuals})["inputs_embeds"][0]
        return np.asarray(embeds, np.float32)

    def prefill(self, cache: KVCache, inputs_embeds: Array, batch: Batch) -> NextTokens:
        """Fills an empty cache with the prompts; what comes after their last tokens."""
        return self.decoder.prefill(cache, inputs_embeds, batch.position_ids, batch.lengths)

    def step(self, cache: KVCache, tokens: np.ndarray, positions: np.ndarray, moving: Sequence[int]) -> NextTokens:
        """One more token for some slots; the others stand still.

        Args:
            cache: holds what came before.
            tokens: `[slots]` int64.
            positions: `[slots]` int64, the same on every position axis.
            moving: the slots that go on.
        """
        feeds = {"input_ids": tokens[:, None], **self._no_visuals}
        inputs_embeds = self._embed.run(feeds, {"inputs_embeds": cache.step_embeds})["inputs_embeds"]
        position_ids = np.tile(positions[:, None], (self._position_axes, 1, 1))
        return self.decoder.step(cache, inputs_embeds, position_ids, moving)
