"""The KV cache of a batch: allocated once, updated in place by the decoder graph."""

from __future__ import annotations

import numpy as np

from foveate.engines import DecoderEntry

_GRANULARITY_TOKENS = 16


class KVCache:
    """Keys and values of every layer, `[batch, num_key_value_heads, capacity, head_dim]` each.

    Attributes:
        capacity_tokens: tokens that fit per row.
        lengths: `[batch]` int32, tokens held per row; the decode loop moves it on.
        feeds: the arrays by the decoder's input names.
        buffers: the same arrays by its output names.
    """

    def __init__(self, decoder: DecoderEntry, batch: int, tokens: int) -> None:
        self.capacity_tokens = -(-tokens // _GRANULARITY_TOKENS) * _GRANULARITY_TOKENS
        self.lengths = np.zeros(batch, np.int32)
        shape = (batch, decoder.num_key_value_heads, self.capacity_tokens, decoder.head_dim)
        names = [f"{layer}.{part}" for layer in range(decoder.num_hidden_layers) for part in ("key", "value")]
        arrays = [np.zeros(shape, decoder.kv_dtype) for _ in names]
        self.feeds = {f"past_key_values.{name}": array for name, array in zip(names, arrays, strict=True)}
        self.buffers = {f"present.{name}": array for name, array in zip(names, arrays, strict=True)}

    @property
    def nbytes(self) -> int:
        """Bytes allocated for the whole batch."""
        return sum(array.nbytes for array in self.feeds.values())
