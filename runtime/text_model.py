"""The `embed` and `decoder` graphs with their feeds."""

from __future__ import annotations

import numpy as np

from foveate.engines import DecoderEntry, Session
from foveate.runtime.batch import Batch
from foveate.runtime.kv_cache import KVCache


class TextModel:
    """Token ids and visual embeddings in, logits out."""

    def __init__(self, embed: Session, decoder: Session, entry: DecoderEntry) -> None:
        self.entry = entry
        self._embed = embed
        self._decoder = decoder
        no_indices = np.empty(0, np.int64)
        self._no_visuals: dict[str, np.ndarray] = {
            "visual_embeds": np.empty((0, entry.hidden_size), np.float32),
            "keep_indices": no_indices,
            "placeholder_indices": no_indices,
        }

    def embed(self, batch: Batch) -> np.ndarray:
        """`inputs_embeds [batch, sequence, hidden_size]` float32 of pruned prompts."""
        feeds = {
            "input_ids": batch.input_ids,
            "visual_embeds": batch.visual_embeds,
            "keep_indices": batch.keep_indices,
            "placeholder_indices": batch.placeholder_indices,
        }
        return self._embed.run(feeds)["inputs_embeds"]

    def embed_tokens(self, input_ids: np.ndarray) -> np.ndarray:
        """Text embeddings `[tokens, hidden_size]` float32 of `input_ids [tokens]` int64."""
        embeds: np.ndarray = self._embed.run({"input_ids": input_ids[None], **self._no_visuals})["inputs_embeds"][0]
        return embeds

    def prefill(self, inputs_embeds: np.ndarray, batch: Batch, cache: KVCache) -> np.ndarray:
        """Fills an empty cache with the prompts; gives `logits [batch, vocab_size]` float32 of their last tokens."""
        logits = self._decode(inputs_embeds, batch.position_ids, batch.lengths - 1, batch.lengths, cache)
        cache.lengths[:] = batch.lengths
        return logits

    def step(self, tokens: np.ndarray, positions: np.ndarray, cache: KVCache) -> np.ndarray:
        """One more token per row; the caller moves `cache.lengths` on, for the rows that go on.

        Args:
            tokens: `[batch]` int64.
            positions: `[batch]` int64, the same on every position axis.
            cache: holds what came before.

        Returns:
            `logits [batch, vocab_size]` float32.
        """
        inputs_embeds = self._embed.run({"input_ids": tokens[:, None], **self._no_visuals})["inputs_embeds"]
        position_ids = np.tile(positions[:, None], (self.entry.position_axes, 1, 1))
        return self._decode(inputs_embeds, position_ids, np.zeros_like(tokens), cache.lengths + np.int32(1), cache)

    def _decode(
        self, inputs_embeds: np.ndarray, position_ids: np.ndarray, last_indices: np.ndarray, lengths: np.ndarray, cache: KVCache
    ) -> np.ndarray:
        feeds = {
            "inputs_embeds": inputs_embeds,
            "position_ids": position_ids,
            "last_indices": last_indices.astype(np.int64, copy=False),
            "seqlens_k": lengths - np.int32(1),
            "total_sequence_length": np.array(lengths.max(), np.int32),
        }
        return self._decoder.run({**feeds, **cache.feeds}, cache.buffers)["logits"]
