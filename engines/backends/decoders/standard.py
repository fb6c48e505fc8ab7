"""The graph `decoder_standard`: each slot's tokens are scattered to where it ends, and a mask says what they see."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from foveate.engines.backends.decoders.arrays import ArrayCache, ArrayDecoder
from foveate.engines.backends.decoders.protocol import NextTokens
from foveate.engines.backends.memory import Array
from foveate.engines.backends.session import Session
from foveate.engines.format.cache import WINDOW_TOKENS, whole
from foveate.engines.format.manifest import DecoderEntry
from foveate.engines.format.names import DECODER_STANDARD


class StandardAttention(ArrayDecoder):
    """Takes chunks for any slots at once, whatever they hold; see `Decoder`."""

    @classmethod
    def open(cls, graphs: Mapping[str, Session], entry: DecoderEntry) -> StandardAttention:
        """The driver of a bundle's sessions by the names of their graphs."""
        return cls(graphs[DECODER_STANDARD], entry)

    def _append(
        self, cache: ArrayCache, inputs_embeds: Array, position_ids: np.ndarray, last: np.ndarray, total: int
    ) -> NextTokens:
        is_step = inputs_embeds.shape[1] == 1
        seen = min(whole(total, WINDOW_TOKENS), cache.capacity_tokens) if is_step else total
        places = {"write_indices": cache.lengths.astype(np.int64), "cache_indices": np.arange(seen)}
        return self._run(cache, inputs_embeds, position_ids, last, places)
