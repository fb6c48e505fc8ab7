"""The KV cache of a batch: allocated once, updated in place by the decoder graph."""

from __future__ import annotations

import numpy as np

from foveate.engines import DecoderEntry, Memory

_GRANULARITY_TOKENS = 16


class KVCache:
    """Keys and values of every layer, `[batch, num_key_value_heads, capacity, head_dim]` each, where the decoder works on them,
    and what else each decode step writes: at one address for all steps, so that a device can replay them.

    Attributes:
        capacity_tokens: tokens that fit per row.
        lengths: `[batch]` int32, tokens held per row; the decode loop moves it on.
        feeds: the arrays by the decoder's input names.
        presents: the same arrays by its output names.
        buffers: these and `logits [batch, vocab_size]` float32.
        step_embeds: `inputs_embeds [batch, 1, hidden_size]` of a step.
    """

    def __init__(self, decoder: DecoderEntry, batch: int, tokens: int, dtype: str, memory: Memory) -> None:
        self.capacity_tokens = -(-tokens // _GRANULARITY_TOKENS) * _GRANULARITY_TOKENS
        self.lengths = np.zeros(batch, np.int32)
        shape = (batch, decoder.num_key_value_heads, self.capacity_tokens, decoder.head_dim)
        names = [f"{layer}.{part}" for layer in range(decoder.num_hidden_layers) for part in ("key", "value")]
        # Zeros, because what is masked still counts in a product: 0 times whatever lies in fresh memory may be NaN.
        arrays = [memory.zeros(shape, dtype) for _ in names]
        self.feeds = {f"past_key_values.{name}": array for name, array in zip(names, arrays, strict=True)}
        self.presents = {f"present.{name}": array for name, array in zip(names, arrays, strict=True)}
        self.buffers = {"logits": memory.empty((batch, decoder.vocab_size), "float32"), **self.presents}
        self.step_embeds = memory.empty((batch, 1, decoder.hidden_size), dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values allocated for the whole batch."""
        return sum(array.nbytes for array in self.feeds.values())
