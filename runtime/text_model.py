"""The `embed` and `decoder` graphs with their feeds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from foveate.engines import Array, BackendError, DecoderEntry, Session, TensorSpec
from foveate.runtime.batch import Batch
from foveate.runtime.kv_cache import KVCache
from foveate.runtime.sampling import NAN_LOGITS
from foveate.runtime.types import Layout

_CACHE_STEP_TOKENS = 64
"""Decode steps look at a cache of whole multiples of this, so that many of them have equal shapes."""


@dataclass(frozen=True, eq=False)
class NextTokens:
    """What the decoder says about the next token of each row.

    Attributes:
        scores: `logits [batch, vocab_size]` float32, where the decoder left them.
        likeliest: `[batch]` int64, -1 where the logits hold NaN.
    """

    scores: Array
    likeliest: np.ndarray

    @cached_property
    def logits(self) -> np.ndarray:
        """`[batch, vocab_size]` float32 on the host, brought there when it is first asked for."""
        return np.asarray(self.scores)

    def likeliest_token(self, row: int) -> int:
        """The token that greedy decoding takes.

        Raises:
            BackendError: the logits hold NaN.
        """
        token = int(self.likeliest[row])
        if token < 0:
            raise BackendError(NAN_LOGITS)
        return token


class TextModel:
    """Token ids and visual embeddings in, logits out.

    Args:
        embed: the graph `embed`.
        decoder: the graph `decoder` or `decoder_standard`.
        entry: the decoder's sizes.
        prefill: the graph `decoder_prefill`, where the bundle has one.
    """

    def __init__(self, embed: Session, decoder: Session, entry: DecoderEntry, prefill: Session | None = None) -> None:
        self.entry = entry
        self._embed = embed
        self._decoder = decoder
        self._prefill = prefill
        self._inputs = {tensor.name: tensor for tensor in decoder.spec.inputs}
        visual_embeds = next(tensor for tensor in embed.spec.inputs if tensor.name == "visual_embeds")
        self._visual_dtype = visual_embeds.dtype
        self.no_visual_embeds = embed.memory.empty((0, entry.hidden_size), self._visual_dtype)
        no_indices = np.empty(0, np.int64)
        self._no_visuals: dict[str, Any] = {
            "visual_embeds": self.no_visual_embeds,
            "keep_indices": no_indices,
            "placeholder_indices": no_indices,
        }

    @property
    def capacity_tokens(self) -> int | None:
        """Tokens of a row's cache where the graph fixes them."""
        capacity = self._past.shape[2]
        return capacity if isinstance(capacity, int) else None

    @property
    def _past(self) -> TensorSpec:
        return self._inputs["past_key_values.0.key"]

    def new_cache(self, batch: int, tokens: int) -> KVCache:
        """An empty cache for `tokens` of each row, prompt and answer."""
        return KVCache(self.entry, batch, self.capacity_tokens or tokens, self._past.dtype, self._decoder.memory)

    def bring(self, visual_embeds: Array) -> Array:
        """Visual embeddings in the memory and dtype of the `embed` graph; a selector may have made new ones on the host."""
        return self._embed.memory.asarray(visual_embeds, self._visual_dtype)

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

    def prefill(self, inputs_embeds: Array, batch: Batch, cache: KVCache) -> NextTokens:
        """Fills an empty cache with the prompts; what comes after their last tokens."""
        width, position_ids, last = batch.input_ids.shape[1], batch.position_ids, batch.lengths - 1
        if self._prefill is not None and width > 1:
            self._fill(self._prefill, np.asarray(inputs_embeds)[:, :-1], position_ids[:, :, :-1], cache, batch.lengths)
            rows = np.arange(len(last))
            inputs_embeds, position_ids = np.asarray(inputs_embeds)[rows, last, None], position_ids[:, rows, last, None]
            last = np.zeros_like(last)
        found = self._decode(inputs_embeds, position_ids, last, cache, batch.lengths, width)
        cache.lengths[:] = batch.lengths
        return found

    def _fill(
        self, session: Session, inputs_embeds: np.ndarray, position_ids: np.ndarray, cache: KVCache, lengths: np.ndarray
    ) -> None:
        """Fills an empty cache with prompts of `lengths` but for the last token of the longest. Of the shorter ones it may take
        the last token too: `decoder` writes that once more."""
        held = np.minimum(lengths, inputs_embeds.shape[1])
        feeds = {
            "inputs_embeds": inputs_embeds,
            "position_ids": position_ids,
            "seqlens_k": held - np.int32(1),
            "total_sequence_length": np.array(held.max(), np.int32),
        }
        session.run({**feeds, **cache.feeds}, cache.presents)
        cache.lengths[:] = lengths - 1

    def step(self, tokens: np.ndarray, positions: np.ndarray, cache: KVCache) -> NextTokens:
        """One more token per row; the caller moves `cache.lengths` on, for the rows that go on.

        Args:
            tokens: `[batch]` int64.
            positions: `[batch]` int64, the same on every position axis.
            cache: holds what came before.
        """
        feeds = {"input_ids": tokens[:, None], **self._no_visuals}
        inputs_embeds = self._embed.run(feeds, {"inputs_embeds": cache.step_embeds})["inputs_embeds"]
        position_ids = np.tile(positions[:, None], (self.entry.position_axes, 1, 1))
        lengths = cache.lengths + np.int32(1)
        looked_at = min(-(-int(lengths.max()) // _CACHE_STEP_TOKENS) * _CACHE_STEP_TOKENS, cache.capacity_tokens)
        return self._decode(inputs_embeds, position_ids, np.zeros_like(tokens), cache, lengths, looked_at)

    def _decode(
        self,
        inputs_embeds: Array,
        position_ids: np.ndarray,
        last_indices: np.ndarray,
        cache: KVCache,
        lengths: np.ndarray,
        cache_tokens: int,
    ) -> NextTokens:
        """One run; `lengths [batch]` int32 are the tokens in the cache after it, of which `cache_tokens` are looked at."""
        feeds = {
            "inputs_embeds": inputs_embeds,
            "position_ids": position_ids,
            "last_indices": last_indices.astype(np.int64, copy=False),
            # Of `decoder`:
            "seqlens_k": lengths - np.int32(1),
            "total_sequence_length": np.array(lengths.max(), np.int32),
            # Of `decoder_standard`:
            "write_indices": cache.lengths.astype(np.int64),
            "cache_indices": np.arange(cache_tokens),
        }
        wanted = {name: array for name, array in feeds.items() if name in self._inputs}
        outputs = self._decoder.run({**wanted, **cache.feeds}, cache.buffers)
        return NextTokens(outputs["logits"], np.asarray(outputs["likeliest_tokens"]))
